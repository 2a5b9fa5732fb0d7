"""Numbers side by side in one vector: what snippets of neighbouring channels begin with, on the CPU and on CUDA."""

__all__ = ["LANES", "VECTORS"]

LANES = 16

# V holds WIDTH numbers, LANES of them, and on CUDA one; `load` and `store` the first `some` of them.
VECTORS = f"""
    #ifdef __CUDA_ARCH__
    typedef REAL V;
    const int WIDTH = 1;
    auto load = [&](const REAL* from, int some) -> V {{ return *from; }};
    auto store = [&](REAL* to, int some, V x) {{ *to = x; }};
    #else
    #pragma clang fp contract(on)
    typedef REAL V __attribute__((ext_vector_type({LANES}), aligned(sizeof(REAL))));
    const int WIDTH = {LANES};
    auto load = [&](const REAL* from, int some) __attribute__((always_inline)) -> V {{
        if (some == {LANES}) return *(const V*)from;
        V x = REAL(0);
        for (int j = 0; j < some; ++j) x[j] = from[j];
        return x;
    }};
    auto store = [&](REAL* to, int some, V x) __attribute__((always_inline)) {{
        if (some == {LANES}) *(V*)to = x;
        else for (int j = 0; j < some; ++j) to[j] = x[j];
    }};
    #endif
"""
