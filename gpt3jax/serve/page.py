"""The web page at `/`, which streams tokens with their probabilities for a prompt.

The page consists of three self-contained files. Its content security policy only allows requests
to this server, and generated text is only ever set as text content.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from gpt3jax.style import COLOURS, CSS

HTML = """<!doctype html>
<html lang=en><head><meta charset=utf-8><meta name=viewport content="width=device-width">
<title>gpt3jax serve</title><link rel=icon href="data:,"><link rel=stylesheet href=page.css>
<script src=page.js defer></script></head><body>
<h1 id=name>gpt3jax serve</h1>
<form id=form>
<label for=prompt>Prompt <small>(empty: a new document)</small></label>
<textarea id=prompt rows=4 spellcheck=false>def main(</textarea>
<div class=fields>
<label>Tokens<input id=max_tokens type=number min=1 value=100></label>
<label>Temperature<input id=temperature type=number min=0 max=2 step=any value=0.8></label>
<label>Top-p<input id=top_p type=number min=0.01 max=1 step=any value=1></label>
<label>Seed<input id=seed type=number min=0 max=4294967295 value=0></label>
<label id=key hidden>Bearer token<input id=token type=password autocomplete=off></label>
<span class=buttons><button id=write>Write</button>
<button id=stop type=button disabled>Stop</button></span>
</div>
</form>
<p id=status role=status>The same seed gives the same text as <code>gpt3jax generate</code>.</p>
<pre id=out aria-label="Generated text"></pre>
<p class=legend><span class=sure>likely</span><span class=scale></span>
<span>unlikely</span> Select a token to see its alternatives.</p>
<section id=detail hidden><h2></h2><div class=wide><table>
<thead><tr><th scope=col>token</th><th scope=col>probability</th><th></th></tr></thead>
<tbody></tbody></table></div></section>
</body></html>
"""

MORE_CSS = f"""
:root{{--seen:{COLOURS[0]};--odd:{COLOURS[4]}}}
[hidden]{{display:none!important}}
label{{display:block;font-size:.85rem;color:var(--soft)}}
textarea,input,button{{font:inherit;color:var(--ink);background:var(--paper);width:100%;
border:1px solid var(--line);border-radius:4px;padding:.4rem .6rem}}
textarea{{font:.85rem/1.5 ui-monospace,monospace;resize:vertical}}
:focus-visible{{outline:2px solid var(--seen);outline-offset:1px}}
.fields{{display:grid;grid-template-columns:repeat(auto-fit,minmax(7.5rem,1fr));gap:.6rem;
margin:.6rem 0 1rem;align-items:end}}
.buttons{{display:flex;gap:.6rem}}
button{{cursor:pointer}} button:disabled{{opacity:.45;cursor:default}}
#write{{background:var(--seen);border-color:var(--seen);color:#fff}}
#out{{min-height:9rem;max-height:none;font-size:.9rem;line-height:1.7;margin-bottom:.5rem}}
#out .given{{color:var(--soft)}}
#out .token{{cursor:pointer;border-radius:2px;
background:color-mix(in srgb,var(--odd) var(--share),transparent)}}
#out .token:hover,#out .chosen{{outline:1px solid var(--ink)}}
#status.wrong{{color:var(--ink);border-left:3px solid {COLOURS[1]};padding-left:.6rem}}
.legend{{display:flex;flex-wrap:wrap;gap:.5rem;align-items:center}}
.scale{{width:6rem;height:.7rem;border:1px solid var(--line);border-radius:2px;
background:linear-gradient(to right,transparent,color-mix(in srgb,var(--odd) 60%,transparent))}}
#detail h2{{margin-top:1rem;overflow-wrap:anywhere}}
#detail td:last-child{{width:40%;min-width:6rem;text-align:left}}
#detail tbody th{{font-family:ui-monospace,monospace;white-space:pre}}
#detail .bar{{display:block;height:.7rem;border-radius:2px;background:var(--seen);
margin-top:.35rem;width:var(--share)}}
"""

SCRIPT = r"""'use strict';
const at = id => document.getElementById(id);
const out = at('out'), state = at('status');
let asking = null;

function say(text, wrong = false) {
  state.textContent = text;
  state.classList.toggle('wrong', wrong);
}
function make(kind, parent, name, text) {
  const made = parent.appendChild(document.createElement(kind));
  if (name) made.className = name;
  if (text !== undefined) made.textContent = text;
  return made;
}
function headers() {
  const token = at('token').value;
  return {'content-type': 'application/json', ...(token && {authorization: 'Bearer ' + token})};
}
async function refusal(answer) {
  if (answer.status === 401) at('key').hidden = false;
  try { return (await answer.json()).error.message; }
  catch { return 'The server answered ' + answer.status + '.'; }
}
const shown = text => JSON.stringify(text).slice(1, -1).replaceAll('\\"', '"');
const percent = log => (100 * Math.exp(log)).toFixed(1) + ' %';

function detail(span, name, log, best) {
  for (const each of out.querySelectorAll('.chosen')) each.classList.remove('chosen');
  span.classList.add('chosen');
  at('detail').hidden = false;
  at('detail').querySelector('h2').textContent = shown(name) + ': ' + percent(log);
  const body = at('detail').querySelector('tbody');
  body.replaceChildren();
  // JavaScript objects list integer keys first.
  for (const [token, its] of Object.entries(best).sort((a, b) => b[1] - a[1])) {
    const row = make('tr', body);
    make('th', row, '', shown(token)).scope = 'row';
    make('td', row, '', percent(its));
    const bar = make('span', make('td', row), 'bar');
    bar.style.setProperty('--share', 100 * Math.exp(its) + '%');
  }
}
function add(choice) {
  const {tokens, token_logprobs: logs, top_logprobs: best} = choice.logprobs;
  if (!tokens.length) { if (choice.text) make('span', out, '', choice.text); return; }
  const last = tokens.length - 1;
  const span = make('span', out, 'token', choice.text);
  const odd = 1 - Math.exp(Math.min(...logs));
  span.style.setProperty('--share', 60 * odd + '%');
  span.title = tokens.map((token, i) => shown(token) + '  ' + percent(logs[i])).join('\n');
  span.addEventListener('click', () => detail(span, tokens[last], logs[last], best[last]));
}
async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = '';
  for (;;) {
    const {done, value} = await reader.read();
    if (done) return;
    buffer += value;
    const parts = buffer.split('\n\n');
    buffer = parts.pop();
    for (const part of parts) yield part.slice('data: '.length);
  }
}
async function write() {
  const request = {prompt: at('prompt').value, stream: true, logprobs: 5};
  for (const id of ['max_tokens', 'temperature', 'top_p', 'seed'])
    request[id] = Number(at(id).value);
  out.replaceChildren();
  at('detail').hidden = true;
  make('span', out, 'given', request.prompt);
  const began = performance.now();
  const answer = await fetch('v1/completions', {
    method: 'POST', headers: headers(), body: JSON.stringify(request), signal: asking.signal});
  if (!answer.ok) { say(await refusal(answer), true); return; }
  let count = 0, finish = '';
  for await (const event of events(answer)) {
    if (event === '[DONE]') break;
    const chunk = JSON.parse(event);
    if (chunk.error) { say(chunk.error.message, true); return; }
    const [choice] = chunk.choices;
    count += choice.logprobs.tokens.length;
    add(choice);
    finish = choice.finish_reason;
    say(count + ' tokens');
  }
  const seconds = (performance.now() - began) / 1000;
  const end = finish === 'stop' ? ', until the end of the document' : '';
  say(count + ' tokens in ' + seconds.toFixed(1) + ' s' + end);
}
at('form').addEventListener('submit', async event => {
  event.preventDefault();
  if (asking) return;
  asking = new AbortController();
  at('write').disabled = true; at('stop').disabled = false;
  say('Reading the prompt');
  try { await write(); }
  catch (error) {
    if (error.name === 'AbortError') say('Stopped');
    else say('The server cannot be reached. Is it still running?', true);
  }
  asking = null;
  at('write').disabled = false; at('stop').disabled = true;
});
at('stop').addEventListener('click', () => asking && asking.abort());
at('prompt').addEventListener('keydown', event => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) at('form').requestSubmit();
});
(async () => {
  const answer = await fetch('v1/models', {headers: headers()});
  if (answer.ok) at('name').textContent = (await answer.json()).data[0].id;
  else say(await refusal(answer), true);
})();
"""

FILES = {
    "/": ("text/html", HTML),
    "/page.js": ("text/javascript", SCRIPT),
    "/page.css": ("text/css", CSS + MORE_CSS),
}
"""Media types and contents by path."""
HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


async def answer(request: Request) -> Response:
    """Respond with one of the page's files."""
    kind, content = FILES[request.url.path]
    return Response(content, media_type=kind, headers=HEADERS)
