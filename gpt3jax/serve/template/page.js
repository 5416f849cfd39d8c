'use strict';
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
