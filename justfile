# Shortcuts for https://just.systems: `just` lists them. None of them is needed; CONTRIBUTING.md has the commands.

_list:
    @just --list --unsorted

# Everything that is checked before a change is merged
check:
    .ci/run

# All tests, or those with NAME in their names
test NAME="":
    cargo test --all-features {{ NAME }}

# Format, lints, scripts, man pages and English
lint:
    .ci/run scripts English format clippy "clippy with all features" "man pages"

# The random test of everything at once, in a release build
chaos SECONDS="60":
    cargo build --release --examples
    CHAOS_SECONDS={{ SECONDS }} cargo test --release --test it chaos:: -- --nocapture

# Searches for inputs that break a decoder; needs cargo-fuzz and a nightly toolchain
fuzz TARGET SECONDS="60":
    cargo +nightly fuzz run {{ TARGET }} -- -max_total_time={{ SECONDS }}

# Licences, duplicates, origins and known vulnerabilities of dependencies; needs cargo-deny
deny:
    cargo deny --locked check

# The API documentation
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --open

# The costs, compared with other servers
bench:
    cargo bench --bench peers -- --quick

# The Debian package
deb:
    packaging/build-deb

# The RPM package
rpm:
    packaging/build-rpm
