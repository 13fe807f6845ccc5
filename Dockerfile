# Portway in a small image, made from its Debian packages: the same files as on a node that installs those.
#
#   docker build -t portway .
#
# docs/containers.md has the `docker run` command with the capabilities that the daemon needs, and the reasons.

FROM debian:12 AS packages
WORKDIR /source
COPY packages.txt install-packages.sh ./
RUN ./install-packages.sh build packaging && rm -rf /var/lib/apt/lists/*
COPY . .
RUN packaging/build-deb.sh /out

FROM debian:12-slim
# Before the package, which would choose any free number: the owner of mounted folders must be known. The state's folder is
# systemd's to make, elsewhere.
RUN groupadd --system --gid 65532 portway \
    && useradd --system --uid 65532 --gid 65532 --home-dir /var/lib/portway --no-create-home \
               --shell /usr/sbin/nologin portway \
    && install -d -o portway -g portway -m 0750 /var/lib/portway
# The package's scripts make its folders with these two, for which systemd would be installed. No service is started.
RUN --mount=type=bind,from=packages,source=/out,target=/packages \
    apt-get update \
    && apt-get install --yes --no-install-recommends systemd-standalone-sysusers systemd-standalone-tmpfiles \
    && apt-get install --yes --no-install-recommends /packages/portway_*.deb /packages/portway-client_*.deb \
        /packages/portway-gateway_*.deb \
    && rm -rf /var/lib/apt/lists/*
# By number: Kubernetes can tell that it is not root.
USER 65532:65532
VOLUME ["/etc/portway", "/var/lib/portway"]
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s \
    CMD ["/usr/bin/portway", "healthcheck", "--config", "/etc/portway/portway.toml"]
# A container ends with its first process: here with the supervisor, which starts a daemon that has crashed again.
ENTRYPOINT ["/usr/bin/portwayd", "--supervise"]
CMD ["--config", "/etc/portway/portway.toml"]
