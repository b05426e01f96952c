# The recipes that CI runs, one line each: `.ci/run` takes the lines from here, so what passes here passes there.

# Lists the recipes.
default:
    @just --list --unsorted

# The code is formatted.
fmt-check:
    cargo fmt --all --check

# No warnings, in any target with any feature.
clippy:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# The core builds without the fronts, and without warnings.
check-bare:
    cargo clippy -p roomcast --lib --no-default-features -- -D warnings

# The documentation builds without a warning.
docs:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --all-features

# What the tests with the official client and the browser need from npm.
client:
    cd cluster-tests/js && npm ci --no-audit --no-fund

# Every test; those that lack a tool are skipped with a reason, unless ROOMCAST_REQUIRE_ALL=1.
test:
    cargo test --workspace

# Messages a second and round trips over one link, beside raw QUIC.
bench-link:
    cargo bench -p cluster-tests --bench link

# A million rooms: memory, snapshots, joins, lookups.
bench-registry:
    cargo bench -p cluster-tests --bench registry

# How long until a join is known on other nodes.
bench-settled:
    cargo bench -p cluster-tests --bench settled

# Instructions of each step of the hot path, held against the stored baseline; needs valgrind.
instructions:
    cargo bench -p cluster-tests --bench instructions

# What a frozen peer costs the others.
bench-isolation:
    cargo bench -p cluster-tests --bench isolation

# What to plan for: memory of links, rooms and clients, packets and CPU of idle links.
bench-sizing:
    cargo bench -p cluster-tests --bench sizing

# Beside raw QUIC, raw TCP, Redis, NATS, Zenoh and socketioxide-redis: ten minutes, the first time more; `--quick`, `--systems a,b`.
bench-peers *OPTIONS:
    cargo bench -p cluster-tests --bench peers -- {{OPTIONS}}

# From WebSocket client to WebSocket client over several servers, beside socketioxide-redis: five minutes; `--quick`, `--case TEXT`.
bench-clients *OPTIONS:
    cargo bench -p cluster-tests --bench clients -- {{OPTIONS}}

# What a cluster costs as it grows, on simulated ground: 3 to 100 nodes, a minute; `--nodes 3,10`, `--gossip-ms 500`.
bench-scale *OPTIONS:
    cargo bench -p cluster-tests --bench scale -- {{OPTIONS}}

# What large messages cost the small ones on the same link.
bench-large:
    cargo bench -p cluster-tests --bench large

# What the benches beside others build has no warnings and passes its tests; not in CI, as it compiles Zenoh.
check-peers:
    cd cluster-tests/peers && cargo fmt --check && cargo clippy --all-targets -- -D warnings && cargo test

# The same faults for roomcast and, where they are installed, Redis and NATS: five minutes, as a table.
heal-report:
    cargo run --release -p cluster-tests --bin heal-report

# How long kills and splits take, in simulated time, with so many seeds, from the one given on.
goals SEEDS="20" FIRST="1":
    cargo run -q --release -p cluster-tests --bin goals -- {{SEEDS}} {{FIRST}}

# A cut between five processes under load, every message counted: `just cut --seconds 9 --rate 10000`.
cut *OPTIONS:
    cargo run -q --release -p cluster-tests --bin cut -- {{OPTIONS}}

# Half an hour of joins, restarts and splits: memory over time, what was lost: `just soak --minutes 30 --graph soak.svg`.
soak *OPTIONS:
    cargo run --release -p cluster-tests --bin soak -- {{OPTIONS}}

# Three nodes in one process, with a chat page on each.
chat:
    cargo run --release --example chat

# The Kubernetes manifests: rendered, validated, and broken on purpose; needs Python and PyPI.
kubernetes:
    python3 -m venv target/kubernetes/venv && target/kubernetes/venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement examples/kubernetes/check/requirements.txt && target/kubernetes/venv/bin/python -B examples/kubernetes/check

# A minute for one fuzz target (frame, hello, interest, gossip, request, answer, admin); needs the nightly toolchain and cargo-fuzz.
fuzz TARGET="frame":
    cd cluster-tests && cargo +nightly fuzz run {{TARGET}} -- -max_total_time=60 -max_len=4096

# The same decoders on the stable toolchain, so many seconds for each.
fuzz-stable SECONDS="60":
    ROOMCAST_FUZZ_SECONDS={{SECONDS}} cargo test -p cluster-tests --test all fuzz:: -- --nocapture

# Licences, sources and banned crates of the dependency tree; needs cargo-deny.
deny:
    cargo deny check bans licenses sources

# Known vulnerabilities of the dependency tree; needs cargo-deny and its advisory database.
deny-advisories:
    cargo deny check advisories

# Plays one scenario of the simulation and prints its story: `just partition bridge SEED=7`; without a name it lists them.
partition *SCENARIO:
    cargo run -q -p cluster-tests --bin scenario -- {{SCENARIO}}

# Plays every scenario with so many seeds, from the one given on: `just sim 200 1`.
sim SEEDS="20" FIRST="1":
    cargo run -q --release -p cluster-tests --bin scenario -- --all {{SEEDS}} {{FIRST}}

# All that CI does.
ci:
    .ci/run
