// An OHTTP client (RFC 9458, and chunked) on HPKE of the npm packages @hpke/*: no code of this repository.
// Usage: node outside_client.mjs PACKAGES-FOLDER URL KEY-CONFIG-HEX whole|chunked
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";
import { join } from "node:path";
import { webcrypto as crypto } from "node:crypto";

const [, , folder, url, configHex, kind] = process.argv;
const load = (name) => import(pathToFileURL(createRequire(join(folder, "x.js")).resolve(name)).href);
const core = await load("@hpke/core");
const { XWing } = await load("@hpke/hybridkem-x-wing");

const utf8 = (text) => new TextEncoder().encode(text);
const concat = (...parts) => Uint8Array.from(Buffer.concat(parts.map((part) => new Uint8Array(part))));
const u16 = (value) => Uint8Array.of(value >> 8, value & 255);
const varint = (value) =>
  value < 64 ? Uint8Array.of(value) : value < 16384 ? u16(value | 0x4000) : Uint8Array.of(0x80 | (value >>> 24), (value >> 16) & 255, (value >> 8) & 255, value & 255);
const framed = (part) => concat(varint(part.length), part);

// The key configuration: id, KEM, public key, and the first of the symmetric algorithms.
const config = Uint8Array.from(Buffer.from(configHex, "hex"));
const kemId = (config[1] << 8) | config[2];
const kem = { 0x10: () => new core.DhkemP256HkdfSha256(), 0x20: () => new core.DhkemX25519HkdfSha256(), 0x647a: () => new XWing() }[kemId]();
const end = 3 + kem.publicKeySize;
const algorithms = config.slice(end + 2, end + 6);
const aead = { 1: () => new core.Aes128Gcm(), 2: () => new core.Aes256Gcm() }[algorithms[3]]();
const suite = new core.CipherSuite({ kem, kdf: new core.HkdfSha256(), aead });
const header = concat(config.slice(0, 3), algorithms);

// The request, as Binary HTTP of known length.
const content = new Uint8Array(40000).fill(7);
const date = concat(framed(utf8("date")), framed(utf8(new Date().toUTCString())));
const message = concat(
  [0], framed(utf8("POST")), framed(utf8("https")), framed(utf8("host")), framed(utf8("/predictions/echo")),
  framed(date), framed(content), [0],
);

const chunked = kind === "chunked";
const label = chunked ? "message/bhttp chunked request" : "message/bhttp request";
const recipientPublicKey = await suite.kem.deserializePublicKey(config.slice(3, end).buffer);
const sender = await suite.createSenderContext({ recipientPublicKey, info: concat(utf8(label), [0], header).buffer });
const parts = [header, new Uint8Array(sender.enc)];
if (chunked) {
  for (const piece of [message.slice(0, 3), message.slice(3, 20000)]) parts.push(framed(new Uint8Array(await sender.seal(piece.buffer))));
  parts.push([0], new Uint8Array(await sender.seal(message.slice(20000).buffer, utf8("final").buffer)));
} else {
  parts.push(new Uint8Array(await sender.seal(message.buffer)));
}
const type = (way) => `message/ohttp-${chunked ? "chunked-" : ""}${way}`;
const answer = await fetch(`${url}/.well-known/ohttp-gateway`, { method: "POST", body: concat(...parts), headers: { "content-type": type("req") } });
if (answer.status !== 200 || answer.headers.get("content-type") !== type("res")) throw new Error(`not sealed: ${answer.status}`);
const sealed = new Uint8Array(await answer.arrayBuffer());

// The answer, under a key that follows from the request's (section 4.4).
const size = Math.max(12, aead.keySize);
const secret = await sender.export(utf8(chunked ? "message/bhttp chunked response" : "message/bhttp response").buffer, size);
const ikm = await crypto.subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
const salt = concat(sender.enc, sealed.slice(0, size));
const derive = async (info, length) =>
  new Uint8Array(await crypto.subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt, info: utf8(info) }, ikm, length * 8));
const key = await crypto.subtle.importKey("raw", await derive("key", aead.keySize), "AES-GCM", false, ["decrypt"]);
const nonce = await derive("nonce", 12);
let counter = 0;
const open = async (ct, aad) => {
  const iv = Uint8Array.from(nonce);
  iv[11] ^= counter & 255; iv[10] ^= counter >> 8;
  counter += 1;
  return new Uint8Array(await crypto.subtle.decrypt({ name: "AES-GCM", iv, additionalData: utf8(aad) }, key, ct));
};
const read = (bytes, at) => {
  const width = 1 << (bytes[at] >> 6);
  let value = bytes[at] & 63;
  for (let i = 1; i < width; i++) value = value * 256 + bytes[at + i];
  return [value, at + width];
};
let plain = [];
if (chunked) {
  let at = size;
  for (;;) {
    const [length, start] = read(sealed, at);
    if (length === 0) { plain.push(await open(sealed.slice(start), "final")); break; }
    plain.push(await open(sealed.slice(start, start + length), ""));
    at = start + length;
  }
} else {
  plain = [await open(sealed.slice(size), "")];
}

// Binary HTTP: status, then headers and content in either form.
const response = concat(...plain);
const indeterminate = response[0] === 3;
let [status, at] = read(response, 1);
const fields = {};
const text = (bytes) => Buffer.from(bytes).toString("latin1");
const field = () => {
  let length, name;
  [length, at] = read(response, at);
  if (length === 0) return false;
  name = text(response.slice(at, at + length)); at += length;
  [length, at] = read(response, at);
  fields[name] = text(response.slice(at, at + length)); at += length;
  return true;
};
if (indeterminate) { while (field()); } else { let length; [length, at] = read(response, at); const stop = at + length; while (at < stop) field(); }
const body = [];
for (;;) {
  let length;
  [length, at] = read(response, at);
  if (length === 0) break;
  body.push(response.slice(at, at + length)); at += length;
  if (!indeterminate) break;
}
console.log(JSON.stringify({ status, fields, body: Buffer.concat(body).toString() }));
