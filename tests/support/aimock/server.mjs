// npm @copilotkit/aimock for the tests: answers in the dialects of many providers, and takes no network.
//
// Settings come as one line of JSON on standard input: {"api_keys": […], "replies": {"pattern": "text", …},
// "calls": {"tool": {…}}}: a question that says `use <tool>` is answered by a call of it with these arguments. The
// address goes out as one line on standard output. The process ends with its standard input.
import { once } from 'node:events';
import { createInterface } from 'node:readline';

// Standard output is for the one line that says where we are.
console.log = console.info = console.warn = console.error;

const lines = createInterface({ input: process.stdin });
const [line] = await once(lines, 'line');
const settings = { api_keys: [], replies: {}, calls: {}, reply: 'Hello from the mock.', ...JSON.parse(line) };
lines.on('close', () => process.exit(0));

const { LLMock } = await import('@copilotkit/aimock');
const mock = new LLMock({
  port: 0,
  host: '127.0.0.1',
  logLevel: 'silent',
  ...(settings.api_keys.length && { auth: { apiKeys: settings.api_keys } }),
});
for (const [pattern, content] of Object.entries(settings.replies)) mock.onMessage(new RegExp(pattern, 'i'), { content });
for (const [name, given] of Object.entries(settings.calls))
  mock.on(
    { userMessage: new RegExp(`use ${name}`), hasToolResult: false },
    { toolCalls: [{ name, arguments: JSON.stringify(given) }] },
  );
// Questions without a user's message too: Codex warms a WebSocket up with one, and waits 15 s for its answer.
mock.on({}, { content: settings.reply });
await mock.start();
process.stdout.write(`${JSON.stringify({ url: mock.url })}\n`);
