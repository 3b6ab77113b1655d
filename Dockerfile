# syntax=docker/dockerfile:1

FROM rust:1.95-bookworm AS build
WORKDIR /build
RUN rustup target add wasm32-unknown-unknown
COPY . .
RUN cargo build --release --locked --package postern \
 && target/release/postern plugin build plugins/* --out target/components

FROM debian:bookworm-slim
# Tenant files name their components relative to themselves, as in the repository.
WORKDIR /srv/postern
COPY --from=build /build/target/release/postern /usr/local/bin/postern
COPY --from=build /build/target/components target/components
COPY examples/tenants examples/tenants
RUN install -d -o nobody -g nogroup data
USER nobody
ENV POSTERN_TENANTS=/srv/postern/examples/tenants POSTERN_DATA=/srv/postern/data
EXPOSE 3000
# SIGTERM drains: clients are told to come back elsewhere.
STOPSIGNAL SIGTERM
ENTRYPOINT ["postern"]
CMD ["serve"]
