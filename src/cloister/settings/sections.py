"""Everything that can be set, with its default, section by section."""

from __future__ import annotations

from typing import Literal

import msgspec


class ServeSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The model server."""

    mode: Literal["protected", "open"] = "protected"
    """``protected``: sealed models and attested callers only. ``open``: an ordinary model server."""
    host: str = "127.0.0.1"
    https_port: int = 8443
    """Port of HTTPS under the attested key; 0 turns it off. Protected mode only."""
    http_port: int = 0
    """Port of plain HTTP; 0 turns it off, and means 8080 in open mode. In protected mode it carries
    health, evidence and sealed (OHTTP) requests, and refuses every other one."""
    model_store: str = "models"
    """Folder of sealed containers (protected) or of ``.mar`` archives (open)."""
    models: tuple[str, ...] = ()
    """Names to load, each ``name`` or ``name=version``; empty loads the newest of every name in the store."""
    trusted_signers: str = ""
    """File with one Ed25519 public key per line; protected mode loads only models that one of them signed."""
    broker: str = ""
    """Base URL of the key broker, or ``unix:/path`` of a key cache on this machine."""
    broker_ca: str = ""
    """PEM file with the certificate that the broker's TLS is checked against; empty means the system's."""
    tmpfs: str = "/dev/shm"  # noqa: S108  (owner-only folders are made inside it)
    """Where archives are unpacked for handlers that insist on a path; must be a tmpfs in protected mode."""
    max_request_bytes: int = 6_553_500
    max_unfinished_bytes: int = 0
    """What requests that have come in part may hold together. Beyond it those that began first get 503. 0
    means a quarter of the memory."""
    request_timeout_s: float = 120.0
    startup_timeout_s: float = 120.0
    frontends: int = 1
    """Processes that take connections. 1: the server's core does that itself; 2 or more: so many processes do
    nothing else, and hand requests to the core; 0: one for each eight cores, at most four."""
    max_queue: int = 100
    """Requests waiting per model before new ones are answered 503."""
    worker_threads: int = 0
    """Threads that a worker's numerical libraries may use; 0 means as many as it has cores, or leaves the
    choice to them where it is not pinned and alone."""
    worker_cores: str = ""
    """How workers are pinned: ``12x4`` (twelve places of four cores, none across NUMA nodes), lists of cores
    such as ``0-3;4-7``, ``none``, or empty: each worker to one NUMA node where there are several."""
    warm_spare: bool = False
    """Keep one loaded worker of each model in reserve, where memory allows, to stand in for one that dies."""
    management_port: int = 0
    """Port of the management API; 0 turns it off. In protected mode it is HTTPS under the attested key, asks
    for a token in any case, and takes models from the sealed store only."""
    metrics_port: int = 0
    """Port of Prometheus metrics alone; 0 turns it off."""
    inference_address: str = ""
    """Open mode: TorchServe's form of an address, ``http://host:port``, ``https://host:port`` or
    ``unix:/path``; wins over ``host`` and ``http_port``."""
    management_address: str = ""
    """Open mode: wins over ``host`` and ``management_port``."""
    metrics_address: str = ""
    """Open mode: wins over ``host`` and ``metrics_port``."""
    certificate: str = ""
    """PEM chain for addresses with https, in open mode."""
    private_key: str = ""
    """PEM key of ``certificate``."""
    keystore: str = ""
    """PKCS #12 file with chain and key, instead of the two above."""
    keystore_password: str = ""
    """Password of ``keystore``; not shown by ``cloister settings``."""
    grpc_port: int = 0
    """Port of gRPC: TorchServe's inference service and Open Inference Protocol; 0 turns it off. In protected
    mode it is under the attested key."""
    grpc_management_port: int = 0
    """Port of gRPC: TorchServe's management service, with the management API's rules; 0 turns it off."""
    grpc_host: str = ""
    """Address of the gRPC ports; empty means ``host``."""
    grpc_management_host: str = ""
    """Address of ``grpc_management_port``; empty means ``grpc_host``."""
    grpc_tls: bool = False
    """Open mode: gRPC under ``certificate`` and ``private_key``."""
    grpc_connection_age_s: float = 0.0
    """A gRPC connection is closed after this, and its caller connects anew; 0 means never."""
    token_auth: bool = False
    """Ask for TorchServe's tokens at the inference and management APIs; they are in ``key_file``."""
    token_expiration_min: float = 60.0
    """Life of a token in minutes."""
    key_file: str = "key_file.json"
    """Where the tokens are written (0600) at each start; removed at the end."""
    model_api: bool = False
    """Let the management API register and unregister models."""
    allowed_urls: tuple[str, ...] = ()
    """Regular expressions of URLs that models may be fetched from; none means the model store only."""
    install_requirements: bool = False
    """Open mode: install the packages that a model's ``requirements.txt`` names, for that model alone."""
    metrics_config: str = ""
    """TorchServe's metrics YAML: handlers find its ``model_metrics`` under their names; empty means none."""
    service_envelope: str = ""
    """TorchServe's form of requests around every handler: body, json, kserve or kservev2; empty for none."""
    decode_requests: bool = True
    """Give handlers JSON and text decoded; false gives them the bytes that the caller sent."""
    default_handler: str = ""
    """Open mode: handler of an archive that names none, by file, ``file:function`` or built-in name."""
    schema_check_bytes: int = 1 << 14
    """Models that an engine serves: JSON up to so long is checked against the model's inputs in the frontend,
    so that what is wrong never reaches a worker; longer JSON in the worker, before it joins a batch."""
    max_model_bytes: int = 1 << 34
    """Longest archive that is fetched from a URL."""
    load_models: tuple[str, ...] = ()
    """Open mode: archives to load in TorchServe's form, each ``file`` or ``name=file``, or ``all``."""
    model_configs: str = ""
    """JSON of TorchServe's ``models={"name": {"version": {...}}}``: workers, batches and times of each."""
    startup_workers: int = 1
    """Workers of a model that the server starts with, and that says nothing of its own."""
    default_workers: int = 0
    """Workers of a model that the management API registers without saying how many."""
    skip_broken_models: bool = False
    """Start though models cannot be loaded, with a warning for each: without archives that are none, and with
    models whose workers fail, which are tried again."""
    unregister_timeout_s: float = 120.0
    """Longest wait for the requests of a model that is being unregistered."""
    cors_origin: str = ""
    """Web origins whose pages may read answers, such as ``https://app.example``, separated by commas; ``*``
    for any. Empty turns CORS off. Cookies are never let in."""
    cors_methods: str = ""
    """Sent as Access-Control-Allow-Methods; empty: with the answer to a preflight only, GET, POST, PUT,
    DELETE."""
    cors_headers: str = ""
    """Sent as Access-Control-Allow-Headers; empty: with the answer to a preflight only, content-type,
    authorization, x-api-key."""
    system_metrics: bool = True
    """Let the metrics speak of the machine's processors, memory and disk."""
    access_log: bool = False
    """Write a JSON line to stderr for each answered request: id, model, status, length, time; no content."""
    otel_endpoint: str = ""
    """Where OpenTelemetry traces go, OTLP over HTTP: ``https://...``, or ``http://`` on loopback; empty means
    none."""
    otel_sample: float = 0.01
    """Part of the requests that are traced, 0 to 1, where the caller says nothing of it."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    worker_port: int = 0
    """Port that worker hosts join at (`cloister worker`); 0 turns it off."""
    worker_host: str = ""
    """Address that worker hosts join at; empty means `host`."""
    worker_reference_values: str = ""
    """TOML file of the worker hosts that may join; empty accepts those with this machine's measurement. Its
    content is measured, not its name."""
    worker_simulated_root: str = ""
    """PEM root of a simulated platform that worker hosts may be on. Never set it in production."""
    worker_token: str = ""
    """File with a secret that worker hosts must know too; needed in open mode."""
    remote_only: bool = False
    """Start no workers here and unpack no model: worker hosts compute everything. Needs `worker_port`."""
    worker_max_age_s: float = 3600.0
    """How long a worker host's proof is relied on; then it proves itself anew, working on. 0: for ever."""
    worker_timeout_s: float = 5.0
    """A worker host that is not heard for so long is lost."""
    sandbox: Literal["auto", "required", "best-effort", "off"] = "auto"
    """What confines a model's code: ``required`` starts no worker without network, file and system call
    isolation, ``best-effort`` takes what the machine gives; ``auto`` is ``required`` in protected mode and
    ``off`` in open mode."""
    sandbox_processes: bool = False
    """Let handlers in the sandbox start processes and programs; they are in it too."""
    sandbox_paths: tuple[str, ...] = ()
    """Paths that handlers in the sandbox may read besides their model, Python and the system's libraries."""
    worker_memory_mb: int = -1
    """Most private memory of a worker in MiB. -1 means 80 % of what the machine, or the server's control
    group, has; 0 means any amount."""
    worker_scratch_mb: int = 1024
    """Most that a worker in the sandbox may write into its own folder, in MiB; 0 means any amount."""
    worker_environment: str = ""
    """Open mode: regular expression of the variables of the server's environment that workers get besides
    PATH and its like, ``HF_.*|AWS_.*``; never those of Cloister's settings. Empty means no others."""
    access_policy: str = ""
    """Cedar file that says who may call what; read again when it changes. Empty lets everybody in in open
    mode, and nobody in protected mode."""
    api_keys: str = ""
    """File of API keys, made by ``cloister access key``; read again when it changes. Empty takes none."""
    jwt_issuer: str = ""
    """The ``iss`` of the JSON Web Tokens that are believed; empty takes none."""
    jwt_audience: str = ""
    """Has to be among the ``aud`` of a token."""
    jwt_jwks_url: str = ""
    """Where the issuer's keys are; empty means that its discovery document says so."""
    identities: str = ""
    """TOML file of issuers of JSON Web Tokens and of client certificates; read again when it changes."""
    client_ca: str = ""
    """PEM file of the authorities of callers' client certificates; empty asks for none."""
    client_certificates: Literal["optional", "required"] = "optional"
    """With ``client_ca``: whether a TLS connection without a client certificate is refused. gRPC asks for
    one only where it is required."""
    rate_per_s: float = 0.0
    """Requests per second of one caller, two seconds' worth at once; further ones get 429. 0: any number."""
    quota_per_day: int = 0
    """Requests of one caller in a day (UTC); further ones get 429. 0 means any number."""
    decision_log: str = ""
    """File to which each decision about a request is written, hash-chained and signed; empty means none."""
    decision_log_key: str = ""
    """Ed25519 key (PEM) that signs ``decision_log``, made on first use; empty makes one in memory at each
    start, with a new log."""
    decision_log_mb: int = 64
    """How long ``decision_log`` may get, in MiB; then it goes on in a new file, as one chain. 0: any."""
    ohttp_kem: Literal["x25519", "p-256", "mlkem768-x25519"] = "x25519"
    """Kind of the OHTTP key. ``mlkem768-x25519`` withstands quantum computers too; web pages have
    no such key yet."""
    ohttp_rotation_s: float = 86_400.0
    """How long one OHTTP key is in use; the former one is accepted for ten minutes more. 0: for ever."""
    pad_answers: bool = False
    """Fill sealed answers up to size classes, so that their length says less of what is in them."""


class KeysSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The key broker."""

    host: str = "127.0.0.1"
    port: int = 8600
    names: tuple[str, ...] = ()
    """Names and addresses that clients reach it by, besides ``host``: its certificate bears them."""
    folder: str = "keys"
    """State: KEK file, database, TLS key, signing keys, admin token. Made on first start, owner-only."""
    database: str = ""
    """SQLAlchemy URL; empty means SQLite in ``folder``."""
    kek: str = ""
    """KEK provider, by URI: ``file:``, ``tpm:``, ``pkcs11:`` or ``vault:``; empty: ``file:<folder>/kek``."""
    previous_keks: tuple[str, ...] = ()
    """KEK providers that older records are still under; ``cloister keys rotate --kek`` moves them."""
    reference_values: str = ""
    """TOML file of the TEEs that may attest; without one every attestation is refused."""
    policy: str = ""
    """File that decides each release: Rego if its name ends in ``.rego``, else Cedar. Empty means what was
    set by ``cloister keys policy set``, or the policy that ships."""
    allow_sample: bool = False
    """Take ``sample`` evidence, which proves nothing; its tier is always none. Never set it in production."""
    collateral: str = ""
    """JSON file of endorsements for evidence that does not bring its own; for several kinds, by scheme."""
    simulated_root: str = ""
    """PEM root of a simulated platform to trust besides the vendors'. Never set it in production."""
    session_ttl_s: float = 300.0
    token_ttl_s: float = 300.0
    rate_limit: float = 200.0
    """Challenges and attestations per second that one client address may ask for; 0 means any number."""
    metrics_port: int = 0
    """Port of Prometheus metrics, plain HTTP without names of resources; 0 turns it off."""
    admin_tokens: bool = True
    """Take admin tokens; off leaves administration to client certificates."""
    admin_ca: str = ""
    """PEM file of the authorities of administrators' client certificates; empty takes none."""
    admin_roles: str = ""
    """TOML file that says which client certificate has which role; read again when it changes."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class CacheSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The key cache: a TEE that holds keys for the TEEs beside it, also while the broker is down."""

    broker: str = ""
    """URL of the key broker; several, separated by blanks, are asked in turn."""
    broker_ca: str = ""
    """PEM file with the certificate that the broker's TLS is checked against; empty means the system's."""
    uris: tuple[str, ...] = ()
    """The keys that it may hold, each ``kbs:///repository/type/tag``; ``?version=n`` names one version."""
    socket: str = "/run/cloister/keys.sock"
    """UNIX socket for processes of this machine; empty means none."""
    allowed_uids: tuple[int, ...] = ()
    """Users who may ask over the socket; empty means only the cache's own."""
    host: str = "127.0.0.1"
    port: int = 0
    """HTTPS port for TEEs on other machines; 0 means none."""
    tls: str = ""
    """URI of a PEM with certificate and key for HTTPS, kept at the broker; empty makes one at each start."""
    certificate: str = ""
    """Where the public certificate of HTTPS is written; empty means nowhere."""
    reference_values: str = ""
    """TOML file of the TEEs that may attest to the cache; without one every attestation is refused."""
    policy: str = ""
    """Cedar file that decides each release over HTTPS; empty means the one that ships."""
    collateral: str = ""
    """JSON file of endorsements for evidence that does not bring its own."""
    simulated_root: str = ""
    """PEM root of a simulated platform to trust besides the vendors'. Never set it in production."""
    lease_s: float = 3600.0
    """How long a key is good after the broker released it; renewed when half of it is over."""
    grace_s: float = 3600.0
    """How much longer a key is served while the broker cannot be reached."""
    broker_timeout_s: float = 3.0
    """Longest wait for the broker; a caller without its key hears of a silent broker in about this time."""
    require_locked_memory: bool = True
    """Refuse keys when their memory cannot be locked against being swapped out."""
    session_ttl_s: float = 300.0
    token_ttl_s: float = 300.0
    log_level: Literal["debug", "info", "warning", "error"] = "info"


class TorchSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``cloister.torch``: where its keys come from, and whose models it believes."""

    broker: str = ""
    """Where keys are asked for: ``unix:/path`` of a key cache, or URLs of brokers or caches."""
    broker_ca: str = ""
    """PEM file with the certificate that their TLS is checked against; empty means the system's."""
    trusted_signers: str = ""
    """File with one Ed25519 public key per line; ``load`` takes only what one of them signed."""
    signer: str = ""
    """File of the Ed25519 key that ``save`` signs with; made on first use."""
    admin_token: str = ""
    """File of the admin token by which ``save`` registers a new key at the broker."""


class WorkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A worker host: runs workers for a frontend on another machine. Its models are those of [serve]."""

    frontend: str = ""
    """The frontend's `https://host:port`, where the port is its `serve.worker_port`."""
    name: str = ""
    """What the frontend calls this host; empty means the machine's name."""
    slots: int = 0
    """Workers to run; 0 means one for each model that the frontend serves and this host has."""
    reference_values: str = ""
    """TOML file of the frontends to work for; empty accepts those with this machine's measurement. Its
    content is measured, not its name."""
    simulated_root: str = ""
    """PEM root of a simulated platform that the frontend may be on. Never set it in production."""
    token: str = ""
    """File with a secret that the frontend must know too; needed in open mode."""
    timeout_s: float = 5.0
    """A frontend that is not heard for so long is lost; it is then sought again."""


class AttestSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where this machine's own evidence comes from."""

    attester: Literal[
        "auto", "configfs", "gramine", "coco", "vtpm", "simulated-tdx", "simulated-sgx", "simulated-sev-snp"
    ] = "auto"
    """``auto`` takes the first hardware that is there and never a simulated one."""
    simulated_platform: str = ""
    """Folder of a simulated platform, made by ``cloister simulate init``."""


class CollateralSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where a verifier obtains the vendors' endorsements of somebody else's evidence.

    Not measured: whatever is obtained is signed by the vendor and verified under its pinned key, and how old
    it may be is said by the reference values (``max_collateral_age_s``), which bind the verdict.
    """

    sources: tuple[Literal["bundle", "vendor", "evidence"], ...] = ()
    """Where to look, in this order; empty means ``bundle``, ``vendor``, ``evidence``."""
    bundle: str = ""
    """File made by ``cloister collateral bundle``; empty means none."""
    pcs_url: str = "https://api.trustedservices.intel.com"
    """Intel's Provisioning Certification Service, or a caching one (PCCS)."""
    root_crl_url: str = ""
    """Where the CRL of Intel's root is; empty means Intel's own place with Intel's service, else the PCCS."""
    tcb_update: Literal["standard", "early"] = "standard"
    """``early``: TCB info that Intel has published and that becomes standard later."""
    kds_url: str = "https://kdsintf.amd.com"
    """AMD's Key Distribution Service, or a cache of it."""
    ca: str = ""
    """PEM file that the services' TLS is checked against; empty means the system's authorities."""
    timeout_s: float = 20.0
    """Longest time for one request."""
    cache: str = ""
    """Folder; empty means ``cloister/collateral`` below ``XDG_CACHE_HOME`` or ``~/.cache``."""
    max_age_s: float = 86400.0
    """How long cached collateral is used before the vendor is asked again; 0 turns the cache off."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything that can be set."""

    serve: ServeSettings = ServeSettings()
    keys: KeysSettings = KeysSettings()
    cache: CacheSettings = CacheSettings()
    torch: TorchSettings = TorchSettings()
    worker: WorkerSettings = WorkerSettings()
    attest: AttestSettings = AttestSettings()
    collateral: CollateralSettings = CollateralSettings()
