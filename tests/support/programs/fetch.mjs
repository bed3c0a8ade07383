// Node's own fetch, and where there is a proxy the CONNECT that Node 20 does not do by itself. Prints JSON.
//
// Settings come by BASE_URL, API_KEY, and BY_PROXY where there is one.
import http from 'node:http';
import https from 'node:https';

const url = new URL(`${process.env.BASE_URL}/chat/completions`);
const headers = { authorization: `Bearer ${process.env.API_KEY}`, 'content-type': 'application/json' };
const question = (stream) => JSON.stringify({ model: 'm', stream, messages: [{ role: 'user', content: 'hi' }] });

async function tunnel(proxy) {
  const { hostname, port, username, password } = new URL(proxy);
  const authorization = `Basic ${btoa(`${username}:${password}`)}`;
  const authority = `${url.hostname}:${url.port || 443}`; // RFC 9110 section 9.3.6: with its port, even the default one
  const request = http.request({
    host: hostname, port, method: 'CONNECT', path: authority, headers: { host: authority, 'proxy-authorization': authorization },
  });
  return new Promise((resolve, reject) => {
    request.on('error', reject);
    request.on('connect', (response, socket) =>
      response.statusCode === 200 ? resolve(socket) : reject(new Error(`CONNECT: ${response.statusCode}`)));
    request.end();
  });
}

// One connection for both questions, as an agent keeps it.
async function through(agent, body) {
  return new Promise((resolve, reject) => {
    const request = https.request(url, { method: 'POST', headers, agent }, async (response) => {
      const pieces = [];
      for await (const piece of response) pieces.push(piece);
      resolve({ status: response.statusCode, text: Buffer.concat(pieces).toString() });
    });
    request.on('error', reject);
    request.end(body);
  });
}

async function fetched(body) {
  const response = await fetch(url, { method: 'POST', headers, body });
  const pieces = [];
  for await (const piece of response.body) pieces.push(piece);
  return { status: response.status, text: Buffer.concat(pieces).toString() };
}

const proxy = process.env.BY_PROXY;
let ask = fetched;
if (proxy) {
  const socket = await tunnel(proxy);
  const agent = new https.Agent({ keepAlive: true, maxSockets: 1, socket });
  ask = (body) => through(agent, body);
  process.on('exit', () => socket.destroy());
}
const whole = await ask(question(false));
const streamed = await ask(question(true));
const events = streamed.text.split('\n\n').filter((event) => event.startsWith('data: {'));
process.stdout.write(`${JSON.stringify({
  statuses: [whole.status, streamed.status],
  whole: JSON.parse(whole.text).choices?.[0].message.content,
  stream: events.map((event) => JSON.parse(event.slice(6)).choices[0].delta.content ?? '').join(''),
  events: events.length,
})}\n`);
process.exit(0);
