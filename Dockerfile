# Portway in a small image. Its packages stand in packages.txt, with everybody else's.
#
#   docker build -t portway .
#   docker run --network host -v /etc/portway:/etc/portway -v /var/lib/portway:/var/lib/portway portway
#
# The host's network: the daemon listens on the node's ports and connects through its taps. Docker's default seccomp profile
# refuses io_uring; the daemon then runs on epoll and says so. The two folders must be writable by user 65532.

FROM debian:12 AS build
WORKDIR /source
COPY packages.txt install-packages.sh ./
RUN ./install-packages.sh build
COPY . .
RUN cmake --preset release -DPORTWAY_TESTS=OFF && cmake --build --preset release \
    && cmake --install build/release --prefix /usr/local --strip

FROM debian:12-slim
COPY packages.txt install-packages.sh /tmp/
RUN /tmp/install-packages.sh runtime && rm -rf /tmp/packages.txt /tmp/install-packages.sh /var/lib/apt/lists/*
COPY --from=build /usr/local/bin/portwayd /usr/local/bin/portway /usr/local/bin/
RUN useradd --system --uid 65532 --no-create-home portway \
    && install -d -o portway -g portway -m 0750 /etc/portway /var/lib/portway
USER portway
VOLUME ["/etc/portway", "/var/lib/portway"]
# The API; the forwards' ports are the range of ports.range.
EXPOSE 8080 20000-32767
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s \
    CMD ["curl", "--fail", "--silent", "--show-error", "--output", "/dev/null", "http://127.0.0.1:8080/healthz"]
STOPSIGNAL SIGTERM
ENTRYPOINT ["/usr/local/bin/portwayd"]
CMD ["--config", "/etc/portway/portway.toml"]
