/** What kind of thing went wrong. */
export type ErrorKind =
  /** Not genuine: signature, nonce, age, or an answer that does not authenticate or was cut. */
  | "verification"
  /** Genuine, but not what this page accepts. */
  | "policy"
  /** Not reached, or answered by somebody who could not open the request. */
  | "transport"
  /** Not what the format says. */
  | "malformed"
  /** The service answered under seal that it cannot; `status` is its HTTP status. */
  | "serving";

export class CloisterError extends Error {
  constructor(kind: ErrorKind, message: string, status?: number);
  readonly name: "CloisterError";
  readonly kind: ErrorKind;
  /** HTTP status, or 0 where there is none. */
  readonly status: number;
}

/** One loaded model, as the service's evidence has it. */
export interface LoadedModel {
  name: string;
  version: string;
  /** SHA-256 of the sealed container, hexadecimal. */
  container_digest: string;
  signer: string;
  /** What confines the model's code, in words. */
  sandbox: string;
}

/** What a verdict says of a service. */
export interface Service {
  nonce: string;
  models: LoadedModel[];
  /** RFC 9458 key configuration, base64. */
  "ohttp-key-config": string;
  [name: string]: unknown;
}

export interface VerdictOptions {
  /** Public P-256 keys (JWK) of verifiers that this page trusts: its own copy, not fetched. */
  verifierKeys: JsonWebKey[];
  /** Accept a simulated platform: tests and demos only. */
  allowSimulated?: boolean;
  /** Accept a verdict with something tolerated, such as an old platform. */
  acceptWarning?: boolean;
  /** Which loaded models are acceptable; all, if it is left out. */
  acceptModels?: (models: LoadedModel[]) => boolean;
}

export interface ClientOptions extends VerdictOptions {
  /** Base address of a verifier (`cloister verifier`). */
  verifier: string;
  /** How long one verdict is relied on, in milliseconds; at most its own life. By default 300,000. */
  maxAgeMs?: number;
  /** API key or JSON Web Token; it travels inside the seal. */
  token?: string;
  fetch?: typeof fetch;
}

export interface SealedRequestInit {
  method?: string;
  headers?: HeadersInit;
  body?: BodyInit | null;
  /** Seal in chunks, and read the answer as it is made. */
  stream?: boolean;
  signal?: AbortSignal;
}

export interface PredictOptions {
  version?: string;
  contentType?: string;
  headers?: HeadersInit;
  signal?: AbortSignal;
}

/** A service that has to prove itself before anything is sent to it. */
export class CloisterClient {
  constructor(url: string, options: ClientOptions);
  /** Verify now; what the verdict says of the service. */
  verify(): Promise<Service>;
  /** As `fetch`, for a path of the service: sealed there and back. */
  fetch(path: string, init?: SealedRequestInit): Promise<Response>;
  /** Ask a model: JSON where the answer is JSON, else bytes. */
  predict(model: string, data: unknown, options?: PredictOptions): Promise<any>;
}

/** The claims of a verdict about `nonce`, after every check; rejects with a `CloisterError` if one fails. */
export function checkVerdict(
  token: string,
  nonce: string,
  options: VerdictOptions,
): Promise<{ service: Service; expires: number }>;

/** One RFC 9458 key configuration, and the first combination in it that this file knows. */
export interface KeyConfig {
  keyId: number;
  publicKey: Uint8Array;
  /** HPKE AEAD: 1 for AES-128-GCM, 2 for AES-256-GCM. */
  aead: number;
}

export function parseKeyConfig(raw: Uint8Array): KeyConfig;

/** A request in Binary HTTP (RFC 9292). */
export function renderRequest(
  method: string,
  authority: string,
  path: string,
  headers: HeadersInit,
  content: Uint8Array,
): Uint8Array;

/** Reads a response in Binary HTTP (RFC 9292) as its bytes come. */
export class ResponseReader {
  readonly head: { status: number; headers: [string, string][] } | null;
  /** Take bytes in; what they bring of the content. */
  push(data: Uint8Array): Uint8Array;
  /** The end of the message; throws if it was cut. */
  finish(): void;
}

/** For tests against published vectors only. */
export const forTests: Record<string, Function>;
