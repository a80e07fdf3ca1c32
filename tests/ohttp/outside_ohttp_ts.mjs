// ohttp-ts (https://github.com/thibmeu/ohttp-ts), which shares no code with this repository, as a client.
// Usage: node outside_ohttp_ts.mjs PACKAGES-FOLDER URL KEY-CONFIG-HEX whole|chunked
import { pathToFileURL } from "node:url";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const [, , folder, url, configHex, kind] = process.argv;
const esm = (name) => {
  const root = join(folder, "node_modules", name);
  const description = JSON.parse(readFileSync(join(root, "package.json")));
  const entry = description.exports?.["."] ?? description.main;
  const file = typeof entry === "string" ? entry : (entry.default ?? entry.import.default ?? entry.import);
  return import(pathToFileURL(join(root, file)).href);
};
const hpke = await esm("hpke");
const ohttp = await esm("ohttp-ts");

const suite = new hpke.CipherSuite(hpke.KEM_DHKEM_X25519_HKDF_SHA256, hpke.KDF_HKDF_SHA256, hpke.AEAD_AES_128_GCM);
const config = await ohttp.KeyConfig.parse(Uint8Array.from(Buffer.from(configHex, "hex")));
const Client = kind === "chunked" ? ohttp.ChunkedOHTTPClient : ohttp.OHTTPClient;
const request = new Request("https://host/predictions/echo", {
  method: "POST", headers: { date: new Date().toUTCString() }, body: new Uint8Array(40000).fill(7),
});
const gateway = `${url}/.well-known/ohttp-gateway`;
const sealed = await new Client(suite, config).encapsulateRequest(request, gateway);
const outer = sealed.request ?? new Request(gateway, sealed.init);
// Gathered, because the test's server takes no body in parts here.
const answer = await fetch(gateway, { method: "POST", headers: outer.headers, body: await outer.arrayBuffer() });
const inner = await sealed.context.decapsulateResponse(answer);
console.log(JSON.stringify({ status: inner.status, fields: Object.fromEntries(inner.headers), body: await inner.text() }));
