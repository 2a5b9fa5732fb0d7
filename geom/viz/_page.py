"""The page that `save_html` fills: a small WebGL 2 viewer in plain JavaScript.

Marks like @TITLE@ stand where `save_html` puts text. Lines are drawn as quads, six corners for each instance: WebGL's
own are one pixel wide.
"""

__all__ = ["PAGE"]

PAGE = r"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>@TITLE@</title>
<style>
  html, body { margin: 0; height: 100%; overflow: hidden; font: 14px system-ui, sans-serif; color: #223; }
  canvas { position: fixed; inset: 0; width: 100%; height: 100%; touch-action: none; cursor: grab; }
  canvas:active { cursor: grabbing; }
  #legend { position: fixed; top: 12px; left: 12px; max-height: 90%; overflow: auto; padding: 8px 12px;
            background: #fffd; border-radius: 8px; box-shadow: 0 1px 6px #0002; }
  #legend b { display: block; margin-bottom: 4px; }
  #legend label { display: flex; align-items: center; gap: 7px; cursor: pointer; line-height: 1.7; }
  #legend i { width: 11px; height: 11px; border-radius: 50%; }
  #fallback { display: none; padding: 2em; max-width: 40em; }
</style>
</head>
<body>
<canvas id="view" aria-label="3D view"></canvas>
<div id="legend"><b></b></div>
<div id="fallback"><h1></h1><p>This page draws with WebGL 2, which this browser does not offer or has switched off.
It holds:</p><ul>@LISTING@</ul></div>
<noscript><p>This page needs JavaScript to draw.</p></noscript>
<script id="data" type="application/json">@DATA@</script>
<script>
"use strict";
const scene = JSON.parse(document.getElementById("data").textContent);
const canvas = document.getElementById("view"), legend = document.getElementById("legend");
const gl = canvas.getContext("webgl2", {antialias: true});
legend.firstChild.textContent = document.querySelector("#fallback h1").textContent = document.title;
if (!gl) {
  canvas.style.display = legend.style.display = "none";
  document.getElementById("fallback").style.display = "block";
} else start();

function start() {
  // vectors
  const add = (a, b, s = 1) => a.map((x, i) => x + s * b[i]);
  const dot = (a, b) => a[0] * b[0] + a[1] * b[1] + a[2] * b[2];
  const cross = (a, b) => [a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]];
  const unit = a => { const n = Math.hypot(...a) || 1; return a.map(x => x / n); };
  const turned = (v, k, t) =>  // v about the unit axis k by t (Rodrigues)
    add(add(v.map(x => x * Math.cos(t)), cross(k, v), Math.sin(t)), k, dot(k, v) * (1 - Math.cos(t)));

  // programs
  const common = "#version 300 es\nprecision highp float;" +
    "uniform mat4 project; uniform vec2 pixels; uniform float size;";
  const sources = {
    points: [`layout(location=0) in vec3 p; layout(location=1) in vec3 c; out vec3 color;
      void main() { gl_Position = project * vec4(p, 1.); gl_PointSize = size; color = c; }`,
      `in vec3 color; out vec4 o;
      void main() { vec2 d = 2. * gl_PointCoord - 1.; float r = dot(d, d); if (size > 2. && r > 1.) discard;
        o = vec4(color * (1.04 - .3 * r), 1.); }`],
    mesh: [`layout(location=0) in vec3 p; layout(location=1) in vec3 c; layout(location=2) in vec3 n;
      out vec3 color, normal, place;
      void main() { gl_Position = project * vec4(p, 1.); color = c; normal = n; place = p; }`,
      `in vec3 color, normal, place; out vec4 o; uniform vec3 eye; uniform mat3 axes;
      void main() { vec3 v = normalize(eye - place), n = normalize(normal); if (dot(n, v) < 0.) n = -n;
        vec3 key = normalize(axes * vec3(-.55, -.75, -.6)), fill = normalize(axes * vec3(.8, -.1, -.5));
        float sky = .5 - .5 * dot(n, axes[1]);
        float d = .40 + .16 * sky + .48 * max(dot(n, key), 0.) + .20 * max(dot(n, fill), 0.);
        o = vec4(color * d + .16 * pow(max(dot(n, normalize(v + key)), 0.), 24.), 1.); }`],
    lines: [`layout(location=0) in vec3 a; layout(location=1) in vec3 ca; layout(location=2) in vec3 b;
      layout(location=3) in vec3 cb; out vec3 color;
      void main() { vec4 s = project * vec4(a, 1.), e = project * vec4(b, 1.);
        float near = 1e-3; bool far = gl_VertexID == 1 || gl_VertexID == 2 || gl_VertexID == 4;
        if (s.w < near) s = mix(s, e, (near - s.w) / (e.w - s.w));
        else if (e.w < near) e = mix(e, s, (near - e.w) / (s.w - e.w));
        vec2 d = (e.xy / e.w - s.xy / s.w) * pixels; d = length(d) > 0. ? normalize(d) : vec2(1., 0.);
        float side = gl_VertexID == 0 || gl_VertexID == 1 || gl_VertexID == 3 ? 1. : -1.;
        vec4 at = far ? e : s; color = far ? cb : ca;
        gl_Position = at + vec4(vec2(-d.y, d.x) * side * size / pixels * at.w, -2e-3 * at.w * .1, 0.); }`,
      `in vec3 color; out vec4 o; void main() { o = vec4(color, 1.); }`],
  };
  const programs = {};
  for (const [kind, pair] of Object.entries(sources)) {
    const program = gl.createProgram();
    pair.forEach((source, i) => {
      const shader = gl.createShader(i ? gl.FRAGMENT_SHADER : gl.VERTEX_SHADER);
      gl.shaderSource(shader, common + "\n" + source); gl.compileShader(shader);
      if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) console.error(kind, gl.getShaderInfoLog(shader));
      gl.attachShader(program, shader);
    });
    gl.linkProgram(program);
    programs[kind] = {program, at: name => gl.getUniformLocation(program, name)};
  }

  // buffers
  const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
  const upload = (array, target = gl.ARRAY_BUFFER) => {
    const buffer = gl.createBuffer(); gl.bindBuffer(target, buffer); gl.bufferData(target, array, gl.STATIC_DRAW);
  };
  const attribute = (place, array, type, normalize, each = 0) => {
    upload(array); gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, 3, type, normalize, 0, 0); gl.vertexAttribDivisor(place, each);
  };
  for (const thing of scene.things) {
    const positions = new Float32Array(bytes(thing.positions)), colors = new Uint8Array(bytes(thing.colors));
    const index = thing.index && new Uint32Array(bytes(thing.index));
    thing.array = gl.createVertexArray(); gl.bindVertexArray(thing.array);
    thing.shown = true; thing.elements = index ? index.length : thing.count;
    if (thing.kind === "lines") {
      const ends = (source, which) => {
        const result = new source.constructor(3 * index.length / 2);
        for (let i = 0; i < index.length / 2; i++)
          for (let k = 0; k < 3; k++) result[3 * i + k] = source[3 * index[2 * i + which] + k];
        return result;
      };
      for (const which of [0, 1]) {
        attribute(2 * which, ends(positions, which), gl.FLOAT, false, 1);
        attribute(2 * which + 1, ends(colors, which), gl.UNSIGNED_BYTE, true, 1);
      }
    } else {
      attribute(0, positions, gl.FLOAT, false);
      attribute(1, colors, gl.UNSIGNED_BYTE, true);
      if (thing.normals) attribute(2, new Int8Array(bytes(thing.normals)), gl.BYTE, true);
      if (index) upload(index, gl.ELEMENT_ARRAY_BUFFER);
    }
    gl.bindVertexArray(null);
    const label = legend.appendChild(document.createElement("label")), box = document.createElement("input");
    const swatch = document.createElement("i"); box.type = "checkbox"; box.checked = true;
    swatch.style.background = `rgb(${colors.slice(0, 3).join()})`;
    label.append(box, swatch, thing.name);
    box.onchange = () => { thing.shown = box.checked; draw(); };
  }

  // camera
  const home = {eye: scene.eye, target: scene.target};
  let {eye, target} = home;
  const up = unit(scene.up);
  const axes = () => { const f = unit(add(target, eye, -1)), r = unit(cross(f, up)); return [r, cross(f, r), f]; };
  const orbit = (dx, dy) => {
    let v = turned(add(eye, target, -1), up, -dx);
    const tilted = turned(v, axes()[0], -dy);
    if (Math.abs(dot(unit(tilted), up)) < .998) v = tilted;
    eye = add(target, v);
  };
  const zoom = factor => {
    const v = add(eye, target, -1), n = Math.hypot(...v);
    const wanted = Math.min(Math.max(n * factor, 1e-3 * scene.radius), 1e3 * scene.radius);
    eye = add(target, v, wanted / n);
  };
  const pan = (dx, dy) => {
    const [r, d] = axes(), s = 2 * Math.tan(scene.fov / 2) * Math.hypot(...add(eye, target, -1)) / canvas.clientHeight;
    const move = add(r.map(x => -dx * s * x), d, -dy * s);
    eye = add(eye, move); target = add(target, move);
  };

  let waiting = false;
  const draw = () => { if (!waiting) { waiting = true; requestAnimationFrame(paint); } };
  function paint() {
    waiting = false;
    const ratio = window.devicePixelRatio || 1;
    canvas.width = Math.round(canvas.clientWidth * ratio); canvas.height = Math.round(canvas.clientHeight * ratio);
    gl.viewport(0, 0, canvas.width, canvas.height);
    gl.clearColor(...scene.background, 1); gl.enable(gl.DEPTH_TEST);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    const [r, d, f] = axes(), reach = Math.hypot(...add(eye, target, -1));
    const near = Math.max(reach / 100, reach - 20 * scene.radius), far = reach + 50 * scene.radius;
    const h = 1 / Math.tan(scene.fov / 2), w = h * canvas.height / canvas.width;
    const a = (far + near) / (far - near), b = -2 * far * near / (far - near);
    const rows = [[...r.map(x => w * x), -w * dot(r, eye)], [...d.map(x => -h * x), h * dot(d, eye)],
                  [...f.map(x => a * x), -a * dot(f, eye) + b], [...f, -dot(f, eye)]];
    const matrix = [0, 1, 2, 3].flatMap(j => rows.map(row => row[j]));
    for (const thing of scene.things) {
      if (!thing.shown) continue;
      const {program, at} = programs[thing.kind];
      gl.useProgram(program); gl.bindVertexArray(thing.array);
      gl.uniformMatrix4fv(at("project"), false, matrix);
      gl.uniform2f(at("pixels"), canvas.width, canvas.height);
      gl.uniform1f(at("size"), ratio * (thing.kind === "lines" ? 2.2 : scene.point_size));
      gl.uniform3fv(at("eye"), eye); gl.uniformMatrix3fv(at("axes"), false, [...r, ...d, ...f]);
      if (thing.kind === "points") gl.drawArrays(gl.POINTS, 0, thing.elements);
      else if (thing.kind === "lines") gl.drawArraysInstanced(gl.TRIANGLES, 0, 6, thing.elements / 2);
      else gl.drawElements(gl.TRIANGLES, thing.elements, gl.UNSIGNED_INT, 0);
    }
  }

  // hands
  const fingers = new Map();
  canvas.oncontextmenu = event => event.preventDefault();
  canvas.onpointerdown = event => { canvas.setPointerCapture(event.pointerId); fingers.set(event.pointerId, event); };
  canvas.onpointerup = canvas.onpointercancel = event => fingers.delete(event.pointerId);
  canvas.onpointermove = event => {
    const last = fingers.get(event.pointerId);
    if (!last) return;
    const dx = event.clientX - last.clientX, dy = event.clientY - last.clientY;
    if (fingers.size === 2) {
      const other = [...fingers].find(([id]) => id !== event.pointerId)[1];
      const gap = e => Math.hypot(e.clientX - other.clientX, e.clientY - other.clientY) || 1;
      zoom(gap(last) / gap(event)); pan(dx / 2, dy / 2);
    } else if (event.buttons & 6 || event.shiftKey) pan(dx, dy);
    else orbit(dx * .008, dy * .008);
    fingers.set(event.pointerId, event);
    draw();
  };
  canvas.addEventListener("wheel", event => {
    event.preventDefault();
    zoom(Math.exp(Math.sign(event.deltaY) * Math.min(Math.abs(event.deltaY), 100) * .0015)); draw();
  }, {passive: false});
  canvas.ondblclick = () => { ({eye, target} = home); draw(); };
  window.addEventListener("resize", draw);
  draw();
}
</script>
</body>
</html>
"""
