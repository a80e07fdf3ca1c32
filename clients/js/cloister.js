// Cloister for JavaScript: talk to a protected model server from a page or from Node, sealed to a key that a
// verifier vouches for. One file, no build step, nothing but WebCrypto (X25519: Node 20, Chromium 133, Firefox 130,
// Safari 17).
//
//   import { CloisterClient } from "./cloister.js";
//   const client = new CloisterClient("https://models.example:8443", {
//     verifier: "https://verifier.example:8700",
//     verifierKeys: [{ kty: "EC", crv: "P-256", x: "...", y: "..." }],   // the page's own copy, not fetched
//   });
//   const answer = await client.predict("digits", imageBytes);
//
// What it does, in this order:
// 1. It draws a nonce and fetches the server's evidence over it.
// 2. The verifier judges that evidence. Its verdict is a token (EAR, a JWT) that this file checks: signature by one of
//    `verifierKeys`, life, nonce, status "affirming". Quotes are not parsed here.
// 3. The verdict names the server's OHTTP key. Requests are sealed to it (RFC 9180, RFC 9458, RFC 9292); what the
//    network and the host see is one POST of ciphertext. Answers open only with this request's secret.
//
// A page is trusted as much as whoever serves its script: see docs/calling.md.

const GATEWAY = "/.well-known/ohttp-gateway";
const EVIDENCE = "/.well-known/cloister/evidence";
const KEY_PROBLEM = "https://iana.org/assignments/http-problem-types#ohttp-key";
const MAX_SKEW_S = 60;
const KEM_X25519 = 0x0020, KDF_SHA256 = 0x0001, AES_128_GCM = 0x0001, AES_256_GCM = 0x0002;
const KEY_BYTES = { [AES_128_GCM]: 16, [AES_256_GCM]: 32 };
const NONCE_BYTES = 12, TAG_BYTES = 16, PIECE_BYTES = 16384, MAX_CHUNK_BYTES = 65536 + TAG_BYTES;
const MAX_TOKEN_CHARS = 256 * 1024, MAX_HEAD_BYTES = 64 * 1024;
const EAR_PROFILES = ["tag:github.com,2024:confidential-containers/Trustee", "tag:github.com,2023:veraison/ear"];
const OURS = ["content-length", "transfer-encoding", "connection", "keep-alive", "host"]; // about one connection, not sealed

/** What went wrong, in words; `kind` is one of verification, policy, transport, malformed, serving. */
export class CloisterError extends Error {
  constructor(kind, message, status = 0) {
    super(message);
    this.name = "CloisterError";
    this.kind = kind;
    this.status = status;
  }
}

/** A service that has to prove itself before anything is sent to it. */
export class CloisterClient {
  /**
   * @param {string} url base address of the service
   * @param {object} options
   * @param {string} options.verifier base address of a verifier (`cloister verifier`)
   * @param {JsonWebKey[]} options.verifierKeys public P-256 keys of verifiers that this page trusts
   * @param {boolean} [options.allowSimulated] accept a simulated platform: tests and demos only
   * @param {boolean} [options.acceptWarning] accept a verdict with something tolerated, such as an old platform
   * @param {(models: object[]) => boolean} [options.acceptModels] which loaded models are acceptable
   * @param {number} [options.maxAgeMs] how long one verdict is relied on, at most its own life
   * @param {string} [options.token] API key or JSON Web Token; it travels inside the seal
   * @param {typeof fetch} [options.fetch]
   */
  constructor(url, { verifier, verifierKeys, allowSimulated = false, acceptWarning = false, acceptModels = () => true, maxAgeMs = 300_000, token, fetch: f } = {}) {
    if (!verifier || !verifierKeys?.length) throw new CloisterError("policy", "no verifier and key: nothing says whom to believe");
    this.url = url.replace(/\/+$/, "");
    this.verifier = verifier.replace(/\/+$/, "");
    this.options = { verifierKeys, allowSimulated, acceptWarning, acceptModels, maxAgeMs };
    this.fetcher = f ?? globalThis.fetch.bind(globalThis);
    this.own = token ? { authorization: `Bearer ${token}` } : {};
    this.session = null;
    this.verifying = null;
  }

  /** Verify now. Returns what the verdict says of the service: keys, settings digest, models. */
  async verify() {
    return (await this.#renew()).service;
  }

  #renew() {
    this.verifying ??= this.#verify().finally(() => { this.verifying = null; });
    return this.verifying;
  }

  async #verify() {
    this.session = null; // forgotten before it is replaced: if this fails, nothing may use the former one
    const nonce = base64url(crypto.getRandomValues(new Uint8Array(32)));
    const evidence = await this.#get(`${this.url}${EVIDENCE}?nonce=${nonce}`);
    const token = await this.#post(`${this.verifier}/v1/verdict?nonce=${nonce}`, evidence);
    const { service, expires } = await checkVerdict(token.trim(), nonce, this.options);
    const config = parseKeyConfig(fromBase64(service["ohttp-key-config"], "key configuration"));
    const until = Math.min(expires, Date.now() + this.options.maxAgeMs);
    this.session = { config, until, service };
    return this.session;
  }

  async #verified() {
    return this.session && Date.now() < this.session.until ? this.session : this.#renew();
  }

  /** As `fetch`, for a path of the service: sealed there and back. With `stream: true` the body comes as it is made. */
  async fetch(path, { method = "GET", headers = {}, body = null, stream = false, signal } = {}) {
    const content = await toBytes(body);
    for (let attempt = 0; attempt < 2; attempt++) {
      const session = await this.#verified();
      const message = renderRequest(method, new URL(this.url).host, path, { ...this.own, ...plainHeaders(headers) }, content);
      const sealed = await sealRequest(session.config, message, stream);
      const answer = await this.#send(sealed, stream, signal);
      if (answer.ok && answer.headers.get("content-type") === sealed.responseType) return sealed.open(answer);
      if (!(await isKeyProblem(answer))) {
        const why = UNSEALED[answer.status] ?? "answered without sealing";
        throw new CloisterError("transport", `${why}: HTTP status ${answer.status}`, answer.status);
      }
      if (this.session === session) this.session = null; // the service has other keys, as after a restart: verify them
    }
    throw new CloisterError("verification", "the service does not know the key that it was just verified with");
  }

  /** Ask a model. Returns JSON where the answer is JSON, else bytes. */
  async predict(model, data, { version, contentType, headers = {}, signal } = {}) {
    const path = `/predictions/${encodeURIComponent(model)}` + (version ? `/${encodeURIComponent(version)}` : "");
    const [body, type] = payload(data);
    const sent = { "content-type": contentType ?? type, ...plainHeaders(headers) };
    const answer = await this.fetch(path, { method: "POST", headers: sent, body, signal });
    if (answer.status >= 400) {
      const said = await answer.json().catch(() => null);
      const why = said?.message ?? said?.title ?? said?.error ?? `HTTP status ${answer.status}`;
      throw new CloisterError("serving", String(why).slice(0, 500), answer.status);
    }
    const isJson = (answer.headers.get("content-type") ?? "").includes("json");
    if (!isJson) return new Uint8Array(await answer.arrayBuffer());
    return answer.json().catch(() => { throw new CloisterError("malformed", "the answer is not JSON"); });
  }

  async #get(url) {
    const answer = await this.#reach(url, {});
    if (!answer.ok) throw new CloisterError("transport", `no evidence: HTTP status ${answer.status}`, answer.status);
    return brokenOff(answer.text());
  }

  async #post(url, body) {
    const answer = await this.#reach(url, { method: "POST", headers: { "content-type": "application/json" }, body });
    if (answer.ok) return brokenOff(answer.text());
    const said = await answer.json().catch(() => null);
    const kind = answer.status === 403 ? "policy" : "verification";
    throw new CloisterError(kind, String(said?.message ?? `the verifier answered ${answer.status}`).slice(0, 500), answer.status);
  }

  async #send(sealed, stream, signal) {
    const headers = { "content-type": sealed.requestType, accept: sealed.responseType };
    return this.#reach(`${this.url}${GATEWAY}`, { method: "POST", headers, body: sealed.bytes, signal });
  }

  async #reach(url, options) {
    try {
      return await this.fetcher(url, { ...options, redirect: "error", cache: "no-store", credentials: "omit" });
    } catch (error) {
      if (error?.name === "AbortError") throw error;
      throw new CloisterError("transport", `cannot reach ${new URL(url).origin}`);
    }
  }
}

/** What a body brings; in this file's words where its connection breaks off. */
const brokenOff = (body) => body.catch((error) => {
  throw error?.name === "AbortError" ? error : new CloisterError("transport", "the answer broke off");
});

const UNSEALED = {
  409: "the gateway has seen this sealed request before",
  413: "the gateway refuses a request of this size",
  429: "the gateway is not accepting requests, try again later",
  503: "the gateway is not accepting requests, try again later",
};

// The verdict: EAR as a compact JWT, ES256.

/** The claims of a verdict, after every check. Throws if one fails. */
export async function checkVerdict(token, nonce, { verifierKeys, allowSimulated, acceptWarning, acceptModels }) {
  const parts = token.length <= MAX_TOKEN_CHARS ? token.split(".") : [];
  if (parts.length !== 3) throw new CloisterError("malformed", "the verdict is not a JWT");
  const header = parseObject(parts[0], "header"), claims = parseObject(parts[1], "claims");
  if (header.alg !== "ES256" || header.crit !== undefined) throw new CloisterError("verification", "the verdict has another algorithm than ES256");
  const signed = utf8(`${parts[0]}.${parts[1]}`), signature = fromBase64(parts[2], "verdict");
  let genuine = false;
  for (const key of await importKeys(verifierKeys)) {
    genuine ||= await crypto.subtle.verify({ name: "ECDSA", hash: "SHA-256" }, key, signature, signed);
  }
  if (!genuine) throw new CloisterError("verification", "no trusted verifier signed the verdict");
  const now = Date.now() / 1000;
  const early = Math.max(claims.iat, claims.nbf ?? claims.iat);
  if (!(claims.exp > now && early <= now + MAX_SKEW_S)) {
    throw new CloisterError("verification", "the verdict is not valid now; is this machine's clock right?");
  }
  if (!EAR_PROFILES.includes(claims.eat_profile)) throw new CloisterError("malformed", "the verdict has another profile");
  const submods = isObject(claims.submods) ? Object.values(claims.submods) : [];
  const enough = ["affirming", 2, ...(allowSimulated || acceptWarning ? ["warning", 32] : [])];
  if (!submods.length || submods.some((part) => !enough.includes(part?.["ear.status"]))) {
    throw new CloisterError("policy", "the verdict is not affirming");
  }
  const annotated = claims.submods.cpu0?.["ear.veraison.annotated-evidence"];
  const service = annotated?.service;
  if (!isObject(service) || service.nonce !== nonce) throw new CloisterError("verification", "the verdict is about another nonce");
  if (annotated.simulated !== false && !allowSimulated) throw new CloisterError("policy", "the platform is simulated");
  if (!Array.isArray(service.models) || !acceptModels(service.models)) throw new CloisterError("policy", "the loaded models are not acceptable");
  return { service, expires: claims.exp * 1000 };
}

async function importKeys(verifierKeys) {
  try {
    const each = verifierKeys.map(({ kty, crv, x, y }) =>
      crypto.subtle.importKey("jwk", { kty, crv, x, y }, { name: "ECDSA", namedCurve: "P-256" }, false, ["verify"]));
    return await Promise.all(each);
  } catch {
    throw new CloisterError("policy", "a verifier's key is not a public P-256 key (JWK)");
  }
}

// OHTTP (RFC 9458) and chunked OHTTP over HPKE (RFC 9180), base mode.

/** One RFC 9458 key configuration: key id, public key, and the first combination that this file knows. */
export function parseKeyConfig(raw) {
  const view = new DataView(raw.buffer, raw.byteOffset, raw.byteLength);
  if (raw.length < 41 || view.getUint16(1) !== KEM_X25519) throw new CloisterError("malformed", "key configuration: not X25519");
  const size = view.getUint16(35);
  if (raw.length !== 37 + size || size % 4) throw new CloisterError("malformed", "key configuration: wrong length");
  for (let at = 37; at < raw.length; at += 4) {
    const aead = view.getUint16(at + 2);
    if (view.getUint16(at) === KDF_SHA256 && KEY_BYTES[aead]) return { keyId: raw[0], publicKey: raw.slice(3, 35), aead };
  }
  throw new CloisterError("malformed", "key configuration: no supported combination");
}

async function sealRequest({ keyId, publicKey, aead }, message, stream, ephemeral) {
  const label = stream ? "message/bhttp chunked " : "message/bhttp ";
  const header = concat([keyId], u16(KEM_X25519), u16(KDF_SHA256), u16(aead));
  const hpke = await setupSender(publicKey, aead, concat(utf8(label + "request"), [0], header), ephemeral);
  let bytes;
  if (stream) {
    const chunks = [];
    for (let at = 0; at < message.length; at += PIECE_BYTES) {
      const ct = await hpke.seal(message.subarray(at, at + PIECE_BYTES));
      chunks.push(varint(ct.length), ct);
    }
    bytes = concat(header, hpke.enc, ...chunks, [0], await hpke.seal(new Uint8Array(), utf8("final")));
  } else {
    bytes = concat(header, hpke.enc, await hpke.seal(message));
  }
  const size = Math.max(NONCE_BYTES, KEY_BYTES[aead]);
  const secret = await hpke.exported(utf8(label + "response"), size);
  const keys = (nonce) => responseKeys(hpke.enc, secret, nonce, aead);
  return {
    bytes,
    requestType: stream ? "message/ohttp-chunked-req" : "message/ohttp-req",
    responseType: stream ? "message/ohttp-chunked-res" : "message/ohttp-res",
    open: stream ? (answer) => openStream(answer, size, keys) : (answer) => openWhole(answer, size, keys),
  };
}

async function openWhole(answer, size, keys) {
  const raw = new Uint8Array(await brokenOff(answer.arrayBuffer()));
  if (raw.length < size + TAG_BYTES) throw new CloisterError("verification", "the answer is truncated");
  const { key, nonce } = await keys(raw.subarray(0, size));
  const reader = new ResponseReader();
  const content = reader.push(await decrypt(key, nonce, raw.subarray(size), new Uint8Array()));
  reader.finish();
  return toResponse(reader.head, content);
}

async function openStream(answer, size, keys) {
  if (!answer.body) throw new CloisterError("verification", "the answer was cut");
  const reader = new ResponseReader();
  const pieces = openPieces(answer.body.getReader(), size, keys);
  let first = new Uint8Array();
  while (!reader.head) {
    const { value, done } = await pieces.next();
    if (done) break;
    first = reader.push(value);
  }
  if (!reader.head) reader.finish();
  const body = new ReadableStream({
    start: (out) => { if (first.length) out.enqueue(first); },
    async pull(out) {
      try {
        for (;;) { // a piece may hold none of the content: a stream that is not given any does not ask again
          const { value, done } = await pieces.next();
          if (done) { reader.finish(); out.close(); return; }
          const content = reader.push(value);
          if (content.length) { out.enqueue(content); return; }
        }
      } catch (error) { out.error(error); }
    },
    cancel: () => pieces.return(),
  });
  return toResponse(reader.head, body);
}

function toResponse(head, body) {
  try {
    return new Response(noBody(head.status) ? null : body, head);
  } catch {
    throw new CloisterError("malformed", "the answer has a header that HTTP does not have");
  }
}

async function* openPieces(source, size, keys) {
  let rest = new Uint8Array(), opened = null, count = 0, final = false;
  const open = async (ct, aad) => decrypt(opened.key, xored(opened.nonce, count++), ct, aad);
  try {
    for (;;) {
      const { value, done } = await brokenOff(source.read());
      if (done) break;
      rest = concat(rest, value);
      if (!opened && rest.length >= size) { opened = await keys(rest.slice(0, size)); rest = rest.slice(size); }
      while (opened && !final) {
        const [length, start] = readVarint(rest, 0);
        if (start < 0) break;
        if (length === 0) { final = true; rest = rest.slice(start); break; }
        if (length > MAX_CHUNK_BYTES) throw new CloisterError("verification", "a chunk of the answer is too long");
        if (rest.length - start < length) break;
        yield await open(rest.subarray(start, start + length), new Uint8Array());
        rest = rest.slice(start + length);
      }
      if (final && rest.length > MAX_CHUNK_BYTES) throw new CloisterError("verification", "a chunk of the answer is too long");
    }
    if (!final) throw new CloisterError("verification", "the answer was cut");
    yield await open(rest, utf8("final"));
  } finally {
    source.cancel().catch(() => {});
  }
}

async function setupSender(publicKey, aead, info, ephemeral) {
  const pair = ephemeral ?? (await crypto.subtle.generateKey({ name: "X25519" }, true, ["deriveBits"]));
  const enc = new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey));
  const peer = await crypto.subtle.importKey("raw", publicKey, { name: "X25519" }, false, []);
  const dh = new Uint8Array(await crypto.subtle.deriveBits({ name: "X25519", public: peer }, pair.privateKey, 256));
  if (dh.every((byte) => byte === 0)) throw new CloisterError("malformed", "public key: of low order");
  const kem = concat(utf8("KEM"), u16(KEM_X25519));
  const suite = concat(utf8("HPKE"), u16(KEM_X25519), u16(KDF_SHA256), u16(aead));
  const eae = await labeledExtract(kem, [], "eae_prk", dh);
  const shared = await labeledExpand(kem, eae, "shared_secret", concat(enc, publicKey), 32);
  const context = concat([0], await labeledExtract(suite, [], "psk_id_hash", []), await labeledExtract(suite, [], "info_hash", info));
  const secret = await labeledExtract(suite, shared, "secret", []);
  const key = await labeledExpand(suite, secret, "key", context, KEY_BYTES[aead]);
  const base = await labeledExpand(suite, secret, "base_nonce", context, NONCE_BYTES);
  const exporter = await labeledExpand(suite, secret, "exp", context, 32);
  const aes = await crypto.subtle.importKey("raw", key, "AES-GCM", false, ["encrypt"]);
  let count = 0;
  return {
    enc,
    seal: async (pt, aad = new Uint8Array()) =>
      new Uint8Array(await crypto.subtle.encrypt({ name: "AES-GCM", iv: xored(base, count++), additionalData: aad }, aes, pt)),
    exported: (label, length) => labeledExpand(suite, exporter, "sec", label, length),
  };
}

async function responseKeys(enc, secret, nonce, aead) {
  const prk = await hmac(concat(enc, nonce), secret);
  const raw = await expand(prk, utf8("key"), KEY_BYTES[aead]);
  const key = await crypto.subtle.importKey("raw", raw, "AES-GCM", false, ["decrypt"]);
  return { key, nonce: await expand(prk, utf8("nonce"), NONCE_BYTES) };
}

async function decrypt(key, iv, ct, aad) {
  try {
    return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv, additionalData: aad }, key, ct));
  } catch {
    throw new CloisterError("verification", "the answer does not authenticate");
  }
}

const labeledExtract = (suite, salt, label, ikm) => hmac(salt, concat(utf8("HPKE-v1"), suite, utf8(label), ikm));
const labeledExpand = (suite, prk, label, info, length) => expand(prk, concat(u16(length), utf8("HPKE-v1"), suite, utf8(label), info), length);

async function hmac(key, data) {
  // HMAC pads its key with zeros; WebCrypto takes no empty one.
  const raw = key.length ? Uint8Array.from(key) : new Uint8Array(32);
  const imported = await crypto.subtle.importKey("raw", raw, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  return new Uint8Array(await crypto.subtle.sign("HMAC", imported, Uint8Array.from(data)));
}

async function expand(prk, info, length) {
  let block = new Uint8Array(), out = new Uint8Array();
  for (let number = 1; out.length < length; number++) {
    block = await hmac(prk, concat(block, info, [number]));
    out = concat(out, block);
  }
  return out.slice(0, length);
}

// Binary HTTP (RFC 9292): requests of known length out, responses of either form in.

/** A request as bytes. What is said of the date or of a connection is left out. */
export function renderRequest(method, authority, path, headers, content) {
  if (!/^[A-Z]{1,32}$/.test(method)) throw new CloisterError("malformed", "a method that HTTP does not have");
  if (!/^\/[\x21-\x7e]*$/.test(path)) throw new CloisterError("malformed", "a path begins with / and is percent-encoded");
  const lines = [field("date", new Date().toUTCString())]; // ours, so that the gateway can refuse a replay however late it comes
  for (const [given, value] of Object.entries(plainHeaders(headers))) {
    const name = given.toLowerCase();
    if (name !== "date" && !OURS.includes(name)) lines.push(field(name, String(value)));
  }
  const section = concat(...lines);
  const control = [method, "https", authority, path].map((text) => concat(varint(utf8(text).length), utf8(text)));
  return concat([0], ...control, varint(section.length), section, varint(content.length), content, [0]);
}

function field(name, value) {
  if (!/^[!#$%&'*+\-.^_`|~0-9a-z]+$/.test(name) || /[\0\r\n]|^[ \t]|[ \t]$/.test(value)) throw new CloisterError("malformed", "a header that HTTP does not have");
  const bytes = utf8(value);
  return concat(varint(name.length), utf8(name), varint(bytes.length), bytes);
}

/** Reads one response as its bytes come. */
export class ResponseReader {
  constructor() {
    this.rest = new Uint8Array();
    this.head = null;
    this.state = "head";
    this.left = 0;
  }

  /** Take bytes in; what they bring of the content. */
  push(data) {
    this.rest = concat(this.rest, data);
    const out = [];
    for (;;) {
      if (this.state === "head") {
        if (!this.#readHead()) break;
      } else if (this.state === "length") {
        const [length, at] = readVarint(this.rest, 0);
        if (at < 0) break;
        this.rest = this.rest.slice(at);
        this.left = length;
        this.state = length ? "content" : "trailers";
      } else if (this.state === "content") {
        if (!this.rest.length) break;
        const taken = this.rest.slice(0, this.left);
        this.rest = this.rest.slice(taken.length);
        this.left -= taken.length;
        out.push(taken);
        if (!this.left) this.state = this.indeterminate ? "length" : "trailers";
      } else break; // trailers say nothing that is used here
    }
    return concat(...out);
  }

  /** The end of the message. */
  finish() {
    if (!this.head) this.push(Uint8Array.of(0)); // a message may end before its headers (RFC 9292, section 3.8)
    if (!this.head || this.state === "content") throw new CloisterError("malformed", "the answer is truncated");
  }

  #readHead() {
    let at = 0;
    const integer = () => { const [value, next] = readVarint(this.rest, at); if (next < 0) throw SHORT; at = next; return value; };
    const text = (length) => { if (at + length > this.rest.length) throw SHORT; at += length; return latin1(this.rest.subarray(at - length, at)); };
    try {
      const framing = integer();
      if (framing !== 1 && framing !== 3) throw new CloisterError("malformed", "not a response");
      this.indeterminate = framing === 3;
      let status, headers;
      do {
        status = integer();
        headers = [];
        const end = this.indeterminate ? -1 : integer() + at;
        for (;;) {
          if (end >= 0 && at >= end) break;
          const length = integer();
          if (!length && end < 0) break;
          headers.push([text(length), text(integer())]);
        }
      } while (status >= 100 && status < 200);
      if (at > MAX_HEAD_BYTES) throw new CloisterError("malformed", "the answer's headers are too long");
      if (status < 200 || status > 599) throw new CloisterError("malformed", "not a status");
      this.head = { status, headers: headers.filter(([name]) => !OURS.includes(name)) };
      this.rest = this.rest.slice(at);
      this.state = "length";
      return true;
    } catch (error) {
      if (error !== SHORT) throw error;
      if (this.rest.length > MAX_HEAD_BYTES) throw new CloisterError("malformed", "the answer's headers are too long");
      return false;
    }
  }
}

const SHORT = Symbol("more is to come");

// Bytes.

const utf8 = (text) => new TextEncoder().encode(text);
const latin1 = (bytes) => Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
const u16 = (value) => Uint8Array.of(value >> 8, value & 255);
const noBody = (status) => status === 204 || status === 205 || status === 304;

function concat(...parts) {
  const out = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) { out.set(part, at); at += part.length; }
  return out;
}

function xored(nonce, count) {
  const out = nonce.slice();
  for (let at = out.length - 1; count > 0; at--) { out[at] ^= count % 256; count = Math.floor(count / 256); }
  return out;
}

function varint(value) {
  if (value < 64) return Uint8Array.of(value);
  if (value < 16384) return u16(value | 0x4000);
  const view = new DataView(new ArrayBuffer(value < 2 ** 30 ? 4 : 8));
  if (value < 2 ** 30) view.setUint32(0, value + 2 ** 31); else view.setBigUint64(0, BigInt(value) | (3n << 62n));
  return new Uint8Array(view.buffer);
}

function readVarint(raw, at) {
  if (at >= raw.length) return [0, -1];
  const size = 1 << (raw[at] >> 6);
  if (at + size > raw.length) return [0, -1];
  let value = raw[at] & 63;
  for (let next = at + 1; next < at + size; next++) value = value * 256 + raw[next];
  return [value, at + size];
}

function fromBase64(text, what) {
  try {
    const plain = text.replace(/-/g, "+").replace(/_/g, "/");
    return Uint8Array.from(atob(plain), (char) => char.charCodeAt(0));
  } catch {
    throw new CloisterError("malformed", `the ${what} is not base64`);
  }
}

function base64url(bytes) {
  return btoa(latin1(bytes)).replace(/\+/g, "-").replace(/\//g, "_").replace(/=+$/, "");
}

function parseObject(part, what) {
  const raw = fromBase64(part, `verdict's ${what}`);
  try {
    const value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(raw));
    if (isObject(value)) return value;
  } catch { /* as any other value */ }
  throw new CloisterError("malformed", `the verdict's ${what} cannot be read`);
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

/** Headers in any form that `fetch` takes, as an object with lower-case names. */
function plainHeaders(headers) {
  if (!isObject(headers) || headers instanceof Headers) return Object.fromEntries(new Headers(headers));
  return Object.fromEntries(Object.entries(headers).map(([name, value]) => [name.toLowerCase(), value]));
}

async function isKeyProblem(answer) {
  if (!(answer.headers.get("content-type") ?? "").startsWith("application/problem+json")) return false;
  const problem = await answer.json().catch(() => ({}));
  return problem?.type === KEY_PROBLEM;
}

async function toBytes(body) {
  if (body === null || body === undefined) return new Uint8Array();
  if (typeof body === "string") return utf8(body);
  if (body instanceof Uint8Array) return body;
  return new Uint8Array(await new Response(body).arrayBuffer());
}

function payload(data) {
  if (typeof data === "string") return [data, "text/plain; charset=utf-8"];
  if (data instanceof ArrayBuffer || ArrayBuffer.isView(data)) {
    return [data instanceof ArrayBuffer ? new Uint8Array(data) : new Uint8Array(data.buffer, data.byteOffset, data.byteLength), "application/octet-stream"];
  }
  if (typeof Blob !== "undefined" && data instanceof Blob) return [data, data.type || "application/octet-stream"];
  return [JSON.stringify(data), "application/json"];
}

/** For tests against published vectors only. */
export const forTests = { sealRequest, setupSender, fromBase64, concat };
