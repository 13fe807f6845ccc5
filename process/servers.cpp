#include "process/servers.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>

#include <ctime>
#include <utility>
#include <variant>

namespace portway {
namespace {

Fd listener_of(Inherited* inherited, const ListenAddress& address) {
  if (inherited == nullptr) return Fd();
  const auto* path = std::get_if<UnixPath>(&address);
  return path != nullptr ? inherited->take_listener(path->path)
                         : inherited->take_listener(std::get<Endpoint>(address));
}

}  // namespace

void Servers::add(FaultPart part, ServerOptions options, RequestHandler handler) {
  entries_.push_back({.part = part, .options = std::move(options), .handler = std::move(handler)});
}

void Servers::start(Inherited* inherited) {
  for (Entry& entry : entries_) {
    entry.socket = listener_of(inherited, entry.options.listen);
    if (const auto* address = std::get_if<Endpoint>(&entry.options.listen)) {
      if (Fd passed = passed_.take(*address)) entry.socket = std::move(passed);
    }
    start(entry);
  }
  for (const std::string& other : passed_.rest()) {
    spdlog::warn("a socket that was passed to the daemon is none of api.listen and metrics.listen: {}",
                 other);
  }
}

void Servers::start(Entry& entry) {
  // If it fails, its clients wait there until it does not.
  Fd socket(entry.socket ? ::fcntl(entry.socket.get(), F_DUPFD_CLOEXEC, 0) : -1);
  auto server = Server::start(context_, entry.options, entry.handler, std::move(socket));
  if (!server) return faults_.set(entry.part, entry.name(), server.error().detail);
  entry.server = std::move(*server);
  entry.socket.reset();
  faults_.clear(entry.part, entry.name());
}

void Servers::retry() {
  for (Entry& entry : entries_) {
    if (entry.server == nullptr) {
      start(entry);
      continue;
    }
    const std::time_t expiry = entry.server->stats().tls_certificate_expiry;
    if (expiry != 0 && expiry < std::time(nullptr)) reload_tls(entry);
  }
}

void Servers::reload_tls() {
  for (Entry& entry : entries_) {
    if (entry.server != nullptr) reload_tls(entry);
  }
}

void Servers::reload_tls(Entry& entry) {
  if (auto loaded = entry.server->reload_tls(); !loaded) {
    faults_.set(FaultPart::kCertificate, entry.name(),
                fmt::format("{}; the listener goes on with the one before", loaded.error().detail));
  } else {
    faults_.clear(FaultPart::kCertificate, entry.name());
  }
}

void Servers::drop_refused() {
  for (const Entry& entry : entries_) {
    if (entry.server != nullptr) entry.server->drop_refused();
  }
}

void Servers::stop() {
  for (const Entry& entry : entries_) {
    if (entry.server != nullptr) entry.server->stop();
  }
  std::erase_if(entries_, [](const Entry& entry) { return entry.server == nullptr; });
}

ServerStats Servers::api_stats() const {
  ServerStats all;
  for (const Entry& entry : entries_) {
    if (entry.part == FaultPart::kApi && entry.server != nullptr) all += entry.server->stats();
  }
  return all;
}

std::uint64_t Servers::open_connections() const {
  std::uint64_t open = 0;
  for (const Entry& entry : entries_) {
    if (entry.server != nullptr) open += entry.server->stats().connections;
  }
  return open;
}

std::vector<std::string> Servers::urls(FaultPart part) const {
  std::vector<std::string> urls;
  for (const Entry& entry : entries_) {
    if (entry.part != part || entry.server == nullptr) continue;
    const ListenAddress address = entry.server->address();
    const bool is_unix = std::holds_alternative<UnixPath>(address);  // complete as it is: "unix:/path"
    const std::string_view scheme = entry.options.tls.certificate.empty() ? "http" : "https";
    urls.push_back(is_unix ? to_string(address) : fmt::format("{}://{}", scheme, to_string(address)));
  }
  return urls;
}

}  // namespace portway
