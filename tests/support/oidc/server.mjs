// An OpenID provider (npm oidc-provider) for the tests: public clients with PKCE, device flow, rotation with reuse
// detection, registration. A login is approved by plain HTTP requests, without a browser.
//
// Settings come as one line of JSON on standard input; the addresses go out as one line on standard output. The
// process ends with its standard input. Routes beside the provider's own:
//   GET  /interaction/:uid   logs in and consents; ?account=NAME, ?deny=1
//   GET  /probe              200 with the account for a living access token, 401 otherwise
//   POST /exchange           gives a short-lived key for a living access token; GET /keyed is 200 for such a key
//   GET  /counts             how often each thing happened
//   POST /control            {"drop_token_answers": N}: act on the next N token requests, then cut the connection;
//                            {"token_delay_ms": N}, {"reset_counts": true}, {"revoke_all": true}
import { generateKeyPairSync, randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { createLocalJWKSet, jwtVerify } from 'jose';

// Standard output is for the one line that says where we are.
console.log = console.info = console.warn = console.error;

const lines = createInterface({ input: process.stdin });
const [line] = await once(lines, 'line');
const settings = {
  access_token_seconds: 3600,
  refresh_token_seconds: 86400,
  device_code_seconds: 600,
  id_token_seconds: 3600,
  access_token_format: 'opaque',
  refresh_tokens: true,
  rotate: true,
  claims: {},
  redirect_uris: [],
  exchange_seconds: 600,
  ...JSON.parse(line),
};
lines.on('close', () => process.exit(0));

const { default: Provider, errors } = await import('oidc-provider');
const http = createServer();
http.listen(settings.port ?? 0, '127.0.0.1');
await once(http, 'listening');
const issuer = `http://127.0.0.1:${http.address().port}`;

const signing = generateKeyPairSync('ec', { namedCurve: 'P-256' });
const jwk = { ...signing.privateKey.export({ format: 'jwk' }), kid: 'test', alg: 'ES256', use: 'sig' };
const { d, ...publicJwk } = jwk;
const publicKeys = createLocalJWKSet({ keys: [publicJwk] });

let counts;
const control = { drop_token_answers: 0, token_delay_ms: 0 };
const grants = new Set();
const keys = new Map();
function resetCounts() {
  counts = { token: {}, errors: {}, device_authorization: 0, revocation: 0, probe: 0, exchange: 0, revoked_grants: 0 };
}
resetCounts();
function count(table, name) {
  if (name) table[name] = (table[name] ?? 0) + 1;
}

// The adapter that comes with the package forgets after 1,000 entries, which a storm would pass.
const entries = new Map();
const byGrant = new Map();
class Adapter {
  constructor(model) { this.model = model; }
  key(id) { return `${this.model}:${id}`; }
  async upsert(id, payload, expiresIn) {
    const key = this.key(id);
    entries.set(key, { payload, until: expiresIn ? Date.now() + expiresIn * 1000 : Infinity });
    if (this.model === 'Session') entries.set(`uid:${payload.uid}`, { id, until: Infinity });
    if (payload.userCode) entries.set(`userCode:${payload.userCode}`, { id, until: Infinity });
    if (this.model === 'Grant') grants.add(id);
    if (payload.grantId) {
      if (!byGrant.has(payload.grantId)) byGrant.set(payload.grantId, new Set());
      byGrant.get(payload.grantId).add(key);
    }
  }
  async find(id) {
    const entry = entries.get(this.key(id));
    return entry && entry.until > Date.now() ? entry.payload : undefined;
  }
  async findByUid(uid) { return this.find(entries.get(`uid:${uid}`)?.id); }
  async findByUserCode(userCode) { return this.find(entries.get(`userCode:${userCode}`)?.id); }
  async consume(id) { (await this.find(id)).consumed = Math.floor(Date.now() / 1000); }
  async destroy(id) { entries.delete(this.key(id)); }
  async revokeByGrantId(grantId) {
    for (const key of byGrant.get(grantId) ?? []) entries.delete(key);
    byGrant.delete(grantId);
  }
}

const resource = `${issuer}/api`;
const provider = new Provider(issuer, {
  adapter: Adapter,
  clients: [
    {
      client_id: 'valetkey-test',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
      response_types: ['code'],
      // RFC 8252 section 7.3: any port goes with these.
      redirect_uris: [
        ...['127.0.0.1', 'localhost'].flatMap((host) => ['/callback', '/auth/callback', '/oauth/callback', '/paste', '/']
          .map((path) => `http://${host}${path}`)),
        ...settings.redirect_uris,
      ],
    },
  ],
  clientDefaults: { id_token_signed_response_alg: 'ES256', token_endpoint_auth_method: 'none' },
  jwks: { keys: [jwk] },
  cookies: { keys: [randomBytes(16).toString('hex')] },
  scopes: ['openid', 'offline_access', 'email', 'profile', 'api:read', 'api:write'],
  claims: { openid: ['sub', ...Object.keys(settings.claims)], email: ['email', 'email_verified'], profile: ['name'] },
  // Many providers put e-mail and plan into the id_token itself; so do we.
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  rotateRefreshToken: () => settings.rotate,
  issueRefreshToken: async (_ctx, client) => settings.refresh_tokens && client.grantTypeAllowed('refresh_token'),
  ttl: {
    AccessToken: settings.access_token_seconds,
    RefreshToken: settings.refresh_token_seconds,
    DeviceCode: settings.device_code_seconds,
    IdToken: settings.id_token_seconds,
    AuthorizationCode: 60,
    Grant: 86400,
    Interaction: 600,
    Session: 86400,
  },
  findAccount: async (_ctx, id) => ({
    accountId: id,
    claims: async () => ({
      sub: id, name: `Test ${id}`, email: `${id}@example.test`, email_verified: true, ...settings.claims,
    }),
  }),
  extraTokenClaims: async (_ctx, token) => ({ grant_id: token.grantId }),
  features: {
    devInteractions: { enabled: false },
    deviceFlow: {
      enabled: true,
      // The pages that our approve_device() fills in.
      userCodeInputSource: async (ctx, form) => { ctx.body = form; },
      userCodeConfirmSource: async (ctx, form) => { ctx.body = form; },
      successSource: async (ctx) => { ctx.body = 'approved'; },
    },
    registration: { enabled: true },
    revocation: { enabled: true },
    introspection: { enabled: false },
    resourceIndicators: {
      enabled: settings.access_token_format === 'jwt',
      defaultResource: async () => resource,
      useGrantedResource: async () => true,
      getResourceServerInfo: async () => ({
        scope: 'openid offline_access email profile api:read api:write',
        accessTokenFormat: 'jwt',
        accessTokenTTL: settings.access_token_seconds,
        jwt: { sign: { alg: 'ES256' } },
      }),
    },
  },
  interactions: { url: (_ctx, interaction) => `/interaction/${interaction.uid}` },
});
provider.on('grant.revoked', () => { counts.revoked_grants += 1; });
provider.on('server_error', (_ctx, error) => console.error(error));

provider.use(async (ctx, next) => {
  if (ctx.path === '/token' && control.token_delay_ms) await sleep(control.token_delay_ms);
  await next();
  if (ctx.path === '/token' && ctx.method === 'POST') {
    count(counts.token, ctx.oidc?.params?.grant_type ?? 'unreadable');
    count(counts.errors, ctx.body?.error);
    if (control.drop_token_answers > 0) {
      control.drop_token_answers -= 1;
      ctx.respond = false;
      ctx.req.socket.destroy();
    }
  } else if (ctx.path === '/device/auth') counts.device_authorization += 1;
  else if (ctx.path === '/token/revocation') counts.revocation += 1;
});

async function interaction(req, res, url) {
  const details = await provider.interactionDetails(req, res);
  if (url.searchParams.get('deny')) {
    return provider.interactionFinished(req, res, { error: 'access_denied', error_description: 'the user said no' });
  }
  if (details.prompt.name === 'login') {
    const accountId = url.searchParams.get('account') ?? 'alice';
    return provider.interactionFinished(req, res, { login: { accountId } }, { mergeWithLastSubmission: false });
  }
  const grant = new provider.Grant({ accountId: details.session.accountId, clientId: details.params.client_id });
  grant.addOIDCScope(details.params.scope ?? 'openid');
  grant.addOIDCClaims(['sub', 'email', 'email_verified', 'name', ...Object.keys(settings.claims)]);
  grant.addResourceScope(resource, details.params.scope ?? 'openid');
  const consent = { grantId: await grant.save() };
  return provider.interactionFinished(req, res, { consent }, { mergeWithLastSubmission: true });
}

// Gives the account behind a living access token, in either format; a token of a revoked grant is dead at once.
async function accountOf(req) {
  const [, token] = /^(?:Bearer|token) (.+)$/i.exec(req.headers.authorization ?? '') ?? [];
  if (!token) return undefined;
  let found;
  if (token.split('.').length === 3) {
    const verified = await jwtVerify(token, publicKeys, { issuer }).catch(() => undefined);
    found = verified && { accountId: verified.payload.sub, grantId: verified.payload.grant_id };
  } else {
    found = await provider.AccessToken.find(token);
  }
  if (!found) return undefined;
  // Tokens of a revoked grant lose their members in byGrant; the grant itself may live on.
  const alive = await provider.Grant.find(found.grantId);
  return alive && byGrant.has(found.grantId) ? found.accountId : undefined;
}

function send(res, status, body) {
  const content = JSON.stringify(body);
  res.writeHead(status, { 'content-type': 'application/json' }).end(content);
}

async function applyControl(req, res) {
  let text = '';
  for await (const chunk of req) text += chunk;
  const wish = JSON.parse(text);
  if (wish.reset_counts) resetCounts();
  if (wish.revoke_all) {
    for (const id of grants) {
      await new Adapter('Grant').revokeByGrantId(id);
      await new Adapter('Grant').destroy(id);
    }
  }
  for (const name of Object.keys(control)) if (name in wish) control[name] = wish[name];
  return send(res, 200, control);
}

async function exchange(req, res) {
  counts.exchange += 1;
  if (!await accountOf(req)) return send(res, 401, { error: 'bad token' });
  const key = `key-${randomBytes(16).toString('hex')}`;
  const expiresAt = Math.floor(Date.now() / 1000) + settings.exchange_seconds;
  keys.set(key, expiresAt);
  return send(res, 200, {
    token: key, expires_at: expiresAt, refresh_in: Math.floor(settings.exchange_seconds / 2), endpoints: { api: issuer },
  });
}

const callback = provider.callback();
http.on('request', async (req, res) => {
  const url = new URL(req.url, issuer);
  try {
    if (url.pathname.startsWith('/interaction/')) await interaction(req, res, url);
    else if (url.pathname === '/counts') send(res, 200, counts);
    else if (url.pathname === '/control') await applyControl(req, res);
    else if (url.pathname === '/exchange') await exchange(req, res);
    else if (url.pathname === '/keyed') {
      const key = (req.headers.authorization ?? '').replace(/^Bearer /, '');
      send(res, keys.get(key) > Date.now() / 1000 ? 200 : 401, { data: [] });
    } else if (url.pathname === '/probe') {
      counts.probe += 1;
      const account = await accountOf(req);
      if (account) send(res, 200, { sub: account, name: `Test ${account}`, email: `${account}@example.test` });
      else send(res, 401, { error: 'invalid_token' });
    } else await callback(req, res);
  } catch (error) {
    console.error(error);
    send(res, error instanceof errors.OIDCProviderError ? 400 : 500, { error: String(error.message) });
  }
});

process.stdout.write(`${JSON.stringify({
  issuer,
  authorization_endpoint: `${issuer}/auth`,
  token_endpoint: `${issuer}/token`,
  device_authorization_endpoint: `${issuer}/device/auth`,
  revocation_endpoint: `${issuer}/token/revocation`,
  registration_endpoint: `${issuer}/reg`,
  userinfo_endpoint: `${issuer}/me`,
  probe_endpoint: `${issuer}/probe`,
  exchange_endpoint: `${issuer}/exchange`,
  client_id: 'valetkey-test',
})}\n`);
