// Fuzz what the JavaScript client reads from others: verdicts, key configurations, answers, sealed streams. Nothing
// but a CloisterError may come out, and nothing that was changed may be believed.
//
// Run: node fuzz/fuzz_client.mjs [seconds] [seed]
//
// Inputs are valid ones, changed: bytes, cuts, insertions, JSON members of other types. Signed and sealed parts are
// signed and sealed after the change too, since no fuzzer finds a signature.

import { CloisterError, ResponseReader, checkVerdict, forTests, parseKeyConfig } from "../clients/js/cloister.js";

const seconds = Number(process.argv[2] ?? 5);
let state = Number(process.argv[3] ?? 1) >>> 0;
const { concat } = forTests;
const utf8 = (text) => new TextEncoder().encode(text);
const base64url = (raw) => Buffer.from(raw).toString("base64url");
const NONCE = base64url(new Uint8Array(32));
const ANY = [null, true, -1, 1e300, "", "x", [], [null], {}, { a: {} }, "\ud800", "2", "affirming"];

function random(below) { // xorshift: the same run again from the same seed
  state ^= state << 13; state >>>= 0; state ^= state >>> 17; state ^= state << 5; state >>>= 0;
  return state % below;
}

function changed(raw) {
  let out = Uint8Array.from(raw);
  for (let times = 1 + random(4); times > 0; times--) {
    const at = random(out.length + 1);
    switch (random(5)) {
      case 0: if (at < out.length) out[at] ^= 1 << random(8); break;
      case 1: if (at < out.length) out[at] = [0, 0x3f, 0x40, 0x7f, 0x80, 0xbf, 0xc0, 0xff][random(8)]; break;
      case 2: out = out.slice(0, at); break;
      case 3: out = concat(out.slice(0, at), out.slice(Math.min(out.length, at + 1 + random(8)))); break;
      default: out = concat(out.slice(0, at), Uint8Array.from({ length: 1 + random(9) }, () => random(256)), out.slice(at));
    }
  }
  return out;
}

function changedJson(value) {
  if (random(4) === 0) return ANY[random(ANY.length)];
  if (typeof value !== "object" || value === null) return random(2) ? value : ANY[random(ANY.length)];
  const keys = Object.keys(value), copy = Array.isArray(value) ? [...value] : { ...value };
  if (keys.length) {
    const key = keys[random(keys.length)];
    if (random(6) === 0) delete copy[key]; else copy[key] = changedJson(value[key]);
  }
  return copy;
}

// Verdicts.

const signer = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
const options = {
  verifierKeys: [await crypto.subtle.exportKey("jwk", signer.publicKey)],
  allowSimulated: false, acceptWarning: false, acceptModels: () => true,
};
const HEADER = { alg: "ES256", typ: "JWT" };
const now = Math.floor(Date.now() / 1000);
const CLAIMS = {
  eat_profile: "tag:github.com,2024:confidential-containers/Trustee", iat: now, nbf: now, exp: now + 86400,
  submods: { cpu0: { "ear.status": "affirming", "ear.veraison.annotated-evidence": {
    simulated: false, service: { nonce: NONCE, models: [{ name: "m" }], "ohttp-key-config": "AA" } } } },
};

async function token(header, claims) {
  const signed = `${base64url(utf8(JSON.stringify(header)))}.${base64url(utf8(JSON.stringify(claims)))}`;
  const signature = await crypto.subtle.sign({ name: "ECDSA", hash: "SHA-256" }, signer.privateKey, utf8(signed));
  return `${signed}.${base64url(new Uint8Array(signature))}`;
}

const good = await token(HEADER, CLAIMS);
await checkVerdict(good, NONCE, options);

async function changedText() {
  const text = Buffer.from(changed(utf8(good))).toString("latin1");
  await checkVerdict(text, NONCE, options);
  // base64's last characters have bits that say nothing; what was signed must be what it was.
  const same = text.split(".").slice(0, 2).join(".") === good.split(".").slice(0, 2).join(".");
  if (!same) throw new Error("a changed verdict is believed");
}

async function changedClaims() {
  const { service } = await checkVerdict(await token(HEADER, changedJson(CLAIMS)), NONCE, options);
  if (service.nonce !== NONCE || !Array.isArray(service.models)) throw new Error("another verdict is believed");
}

const changedHeader = async () => checkVerdict(await token(changedJson(HEADER), CLAIMS), NONCE, options);

// Key configurations and answers.

const SUITES = concat([1], [0, 32], new Uint8Array(32).fill(9), [0, 8], [0, 1, 0, 1], [0, 1, 0, 2]);
const KNOWN = concat([1], [64, 200], [10, 1], utf8("a"), [1], utf8("b"), [3], utf8("x-y"), [2], utf8("cd"), [3], utf8("abc"), [0]);
const PARTS = concat([3], [64, 200], [1], utf8("a"), [1], utf8("b"), [0], [2], utf8("ab"), [1], utf8("c"), [0], [0]);

function answer() {
  const raw = changed(random(2) ? KNOWN : PARTS), reader = new ResponseReader();
  const step = 1 + random(9);
  for (let at = 0; at < raw.length; at += step) reader.push(raw.subarray(at, at + step));
  reader.finish();
}

// Sealed answers, by a gateway of this file's own.

const pair = await crypto.subtle.generateKey({ name: "X25519" }, true, ["deriveBits"]);
const config = parseKeyConfig(concat([1], [0, 32], new Uint8Array(await crypto.subtle.exportKey("raw", pair.publicKey)), [0, 4], [0, 1, 0, 1]));
const sealed = await forTests.sealRequest(config, utf8("x"), false);
const streamed = await forTests.sealRequest(config, utf8("x"), true);

async function capsule() {
  const { opener, raw } = random(2) ? { opener: sealed, raw: new Uint8Array(80) } : { opener: streamed, raw: concat(new Uint8Array(16), [20], new Uint8Array(20), [0], new Uint8Array(30)) };
  const pieces = new ReadableStream({ start(out) { out.enqueue(changed(raw)); out.close(); } });
  await (await opener.open(new Response(pieces))).arrayBuffer();
  throw new Error("an answer that nobody sealed is believed");
}

const keyConfig = () => parseKeyConfig(changed(SUITES));
const TARGETS = { changedText, changedClaims, changedHeader, keyConfig, answer, capsule };
const OFTEN = { keyConfig: 100, answer: 100 }; // the others wait for cryptography
const counts = Object.fromEntries(Object.keys(TARGETS).map((name) => [name, 0]));
let refused = 0;
for (const end = Date.now() + seconds * 1000; Date.now() < end;) {
  for (const [name, target] of Object.entries(TARGETS)) for (let times = OFTEN[name] ?? 1; times > 0; times--) {
    const before = state;
    counts[name]++;
    try {
      await target();
    } catch (error) {
      if (!(error instanceof CloisterError)) { console.error(`${name}, state ${before}:`, error); process.exit(1); }
      refused++;
    }
  }
}
console.log(JSON.stringify({ ...counts, refused, peakMiB: Math.round(process.resourceUsage().maxRSS / 1024) }));
