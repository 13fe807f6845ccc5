// Each connection is a Session (api/http/session.h). It is in one of the lists of Sessions, which says what
// may be done to it: an idle one may be closed at any time, for a newcomer or because the server stops; one
// that is reading a request may finish, unless a newcomer needs its seat; a busy one may finish; a streaming
// one is ended when the server stops.
#include "api/http/server.h"

#include <fmt/chrono.h>
#include <fmt/format.h>
#include <spdlog/spdlog.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_socket_acceptor.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/generic/stream_protocol.hpp>
#include <boost/asio/steady_timer.hpp>
#include <chrono>
#include <ctime>
#include <exception>
#include <list>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>

#include "api/http/failure_log.h"
#include "api/http/peer.h"
#include "api/http/session.h"
#include "api/http/sessions.h"
#include "api/http/tls.h"
#include "api/http/transport.h"
#include "api/http/unix_listener.h"
#include "base/ends_with_process.h"
#include "base/fd.h"
#include "base/into.h"

namespace portway {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Acceptor = asio::basic_socket_acceptor<asio::generic::stream_protocol>;

constexpr std::chrono::milliseconds kAcceptPause(100);
// Clients that are being turned away at the same time; more are closed without an answer.
constexpr std::size_t kTurnedAwayMax = 64;

std::string remedy(const error_code& error) {
  if (error == asio::error::address_in_use) return "stop the process that has it, or choose another port";
  if (error == asio::error::access_denied) {
    return "grant CAP_NET_BIND_SERVICE, or choose a port from 1024 on";
  }
  if (error == boost::system::errc::address_not_available) return "choose an address of this host";
  return "the kernel lacks descriptors, memory or the address family";
}

Error cannot_listen(const Endpoint& endpoint, const error_code& error) {
  const bool is_setting =
      error == asio::error::access_denied || error == boost::system::errc::address_not_available;
  return {.code = is_setting                             ? ErrorCode::kInvalidConfig
                  : error == asio::error::address_in_use ? ErrorCode::kHostPortTaken
                                                         : ErrorCode::kResourceExhausted,
          .detail = fmt::format("cannot listen on {}: {}; {}", to_string(endpoint), error.message(),
                                remedy(error))};
}

void log_expiry(std::string_view certificate, std::time_t expiry) {
  constexpr auto kSoon = std::chrono::hours(24 * 14);
  const auto left = std::chrono::system_clock::from_time_t(expiry) - std::chrono::system_clock::now();
  const std::string until = fmt::format("{:%Y-%m-%dT%H:%M:%SZ}", fmt::gmtime(expiry));
  if (left < kSoon) {
    spdlog::warn("API: {} expires soon, at {}; renew it and reload", certificate, until);
  } else {
    spdlog::info("API: {} is valid until {}", certificate, until);
  }
}

}  // namespace

/// Accepts connections and hands them to sessions.
class Server::Core : public std::enable_shared_from_this<Core> {
 public:
  Core(asio::io_context& context, const ServerOptions& options, RequestHandler handler)
      : acceptor_(context),
        pause_(context),
        sessions_(std::make_shared<Sessions>(options, std::move(handler))) {}

  Result<void> start(Fd inherited) {
    if (auto loaded = reload_tls(); !loaded) return loaded;
    const ListenAddress& address = sessions_->options.listen;
    const auto* unix_path = std::get_if<UnixPath>(&address);
    auto listening = unix_path != nullptr ? listen(*unix_path, std::move(inherited))
                                          : listen(std::get<Endpoint>(address), std::move(inherited));
    if (!listening) return listening;
    asio::co_spawn(
        acceptor_.get_executor(), [self = shared_from_this()] { return self->accept_all(); },
        [self = shared_from_this()](const std::exception_ptr& failure) {
          if (failure) log_exception("accepting has ended", failure);
        });
    return {};
  }

  const ListenAddress& address() const { return address_; }

  Result<void> reload_tls() {
    const TlsFiles& files = sessions_->options.tls;
    if (files.certificate.empty()) return {};
    auto loaded = TlsContext::load(files);
    if (!loaded) return loaded.error();
    tls_ = std::move(*loaded);
    sessions_->stats.tls_certificate_expiry = tls_->expiry();
    log_expiry(files.certificate, tls_->expiry());
    return {};
  }

  void stop() {
    error_code ignored;
    sessions_->stopping = true;
    acceptor_.close(ignored);
    if (unix_listener_) unix_listener_->remove();
    pause_.cancel();
    for (Session* session : sessions_->streaming) session->wake();
    close_all(sessions_->idle);
  }

  void cut() {
    stop();
    close_all(sessions_->reading);
    close_all(sessions_->busy);
    close_all(sessions_->streaming);
    close_all(sessions_->turned_away);
  }

  void drop_refused() {
    for (auto* list : {&sessions_->idle, &sessions_->reading, &sessions_->busy, &sessions_->streaming,
                       &sessions_->turned_away}) {
      for (auto next = list->begin(); next != list->end();) {
        Session& session = **next++;  // closing takes it out of the list
        if (!session.is_refused()) continue;
        ++sessions_->stats.connections_refused_network;
        session.close();
      }
    }
  }

  ServerStats stats() const {
    ServerStats stats = sessions_->stats;
    stats.connections = sessions_->open();
    stats.streams = sessions_->streaming.size();
    return stats;
  }

 private:
  Result<void> listen(const Endpoint& endpoint, Fd inherited) {
    error_code error;
    if (inherited) {
      acceptor_.assign(endpoint.protocol(), inherited.get(), error);
      if (!error) inherited.release();
    } else {
      acceptor_.open(endpoint.protocol(), error);
      if (!error) acceptor_.set_option(Acceptor::reuse_address(true), error);
      if (!error) acceptor_.bind(endpoint, error);
    }
    if (!error) acceptor_.listen(Acceptor::max_listen_connections, error);
    if (!error) address_ = tcp_endpoint(acceptor_.local_endpoint(error));
    if (error) return cannot_listen(endpoint, error);
    return {};
  }

  Result<void> listen(const UnixPath& path, Fd inherited) {
    auto opened = UnixListener::open(path, std::move(inherited));
    if (!opened) return opened.error();
    unix_listener_.emplace(std::move(*opened));
    address_ = path;
    error_code error;
    Fd socket = unix_listener_->take_socket();
    acceptor_.assign(asio::generic::stream_protocol(AF_UNIX, 0), socket.get(), error);
    if (error) {
      return Error{ErrorCode::kResourceExhausted,
                   fmt::format("cannot listen on {}: {}", to_string(address_), error.message())};
    }
    socket.release();
    return {};
  }

  asio::awaitable<void> accept_all() {
    bool paused = false;
    while (!sessions_->stopping) {
      error_code error;
      StreamSocket socket = co_await acceptor_.async_accept(into(error));
      if (sessions_->stopping) co_return;
      if (!error) error = admit(std::move(socket));
      if (error && !paused) {
        spdlog::warn("API: accept: {}; new clients wait until it succeeds again", error.message());
      }
      paused = static_cast<bool>(error);
      if (!paused) continue;
      ++sessions_->stats.accept_pauses;
      pause_.expires_after(kAcceptPause);
      co_await pause_.async_wait(into(error));
    }
  }

  /// An error means that memory has run out.
  error_code admit(StreamSocket socket) try {
    ++sessions_->stats.connections_total;
    const auto peer = peer_of(socket);
    if (!peer) return {};  // it has gone already
    if (sessions_->refuses(*peer)) {
      ++sessions_->stats.connections_refused_network;
      return {};
    }
    if (make_room(*peer)) {
      make_session(sessions_->idle, std::move(socket), *peer)->serve();
      return {};
    }
    ++sessions_->stats.connections_refused_limit;
    if (sessions_->turned_away.size() < kTurnedAwayMax) {
      make_session(sessions_->turned_away, std::move(socket), *peer)->turn_away();
    }
    return {};
  } catch (const std::exception&) {
    return asio::error::no_memory;
  }

  std::optional<Peer> peer_of(StreamSocket& socket) const {
    end_with_process(socket.native_handle());  // no other process could answer
    if (unix_listener_) return unix_peer(socket.native_handle());
    auto peer = tcp_peer(socket);
    if (!peer) return std::nullopt;
    set_tcp_options(socket, sessions_->options.write_timeout);
    if (sessions_->options.refuses) peer->origin.link = incoming_link(socket.native_handle());
    return peer;
  }

  std::shared_ptr<Session> make_session(std::list<Session*>& list, StreamSocket socket,
                                        const Peer& peer) const {
    return std::make_shared<Session>(sessions_, list, SessionTransport(std::move(socket), tls_.get()), peer);
  }

  /// A seat for a newcomer. If its source has its share of them, another connection of the source gives way;
  /// if all are taken, one of whoever has most that wait.
  bool make_room(const Peer& peer) {
    const auto known = sessions_->sources.find(source_name(peer));
    const SessionSource* source = known == sessions_->sources.end() ? nullptr : &known->second;
    if (source != nullptr && source->seats >= sessions_->seats_of_one_source()) {
      return evict([source](const Session& session) { return &session.source() == source; });
    }
    if (sessions_->open() < sessions_->options.connections_max) return true;
    std::size_t most = 0;
    for (const auto& [name, each] : sessions_->sources) most = std::max(most, each.waiting);
    return most > 0 && evict([most](const Session& session) { return session.source().waiting == most; });
  }

  /// Closes the longest idle connection of those that may be closed; if there is none, the one that has been
  /// sending its request for longest. False if there is none either.
  template <class May>
  bool evict(May may) {
    for (auto* const list : {&sessions_->idle, &sessions_->reading}) {
      const auto victim = std::ranges::find_if(*list, [&](const Session* session) { return may(*session); });
      if (victim == list->end()) continue;
      const bool is_idle = list == &sessions_->idle;
      ++(is_idle ? sessions_->stats.connections_evicted : sessions_->stats.half_open_evicted);
      (*victim)->close();
      return true;
    }
    return false;
  }

  static void close_all(std::list<Session*>& list) {
    while (!list.empty()) list.front()->close();
  }

  Acceptor acceptor_;
  ListenAddress address_;
  std::optional<UnixListener> unix_listener_;
  std::shared_ptr<const TlsContext> tls_;  // for the next connection; null: clear text
  asio::steady_timer pause_;               // until the next try after an error
  const std::shared_ptr<Sessions> sessions_;
};

Result<std::unique_ptr<Server>> Server::start(asio::io_context& context, const ServerOptions& options,
                                              RequestHandler handler, Fd inherited) {
  auto core = std::make_shared<Core>(context, options, std::move(handler));
  if (auto started = core->start(std::move(inherited)); !started) return started.error();
  return std::unique_ptr<Server>(new Server(std::move(core)));
}

ServerStats& ServerStats::operator+=(const ServerStats& other) {
  connections += other.connections;
  connections_total += other.connections_total;
  connections_refused_network += other.connections_refused_network;
  connections_refused_limit += other.connections_refused_limit;
  connections_evicted += other.connections_evicted;
  half_open_evicted += other.half_open_evicted;
  handshakes_failed += other.handshakes_failed;
  streams += other.streams;
  streams_refused += other.streams_refused;
  requests_refused += other.requests_refused;
  accept_pauses += other.accept_pauses;
  const std::time_t expiry = other.tls_certificate_expiry;
  const bool is_first = tls_certificate_expiry == 0 || (expiry != 0 && expiry < tls_certificate_expiry);
  if (is_first) tls_certificate_expiry = expiry;
  return *this;
}

Server::Server(std::shared_ptr<Core> core) : core_(std::move(core)) {}

Server::~Server() {
  core_->cut();
}

ListenAddress Server::address() const {
  return core_->address();
}

void Server::stop() {
  core_->stop();
}

Result<void> Server::reload_tls() {
  return core_->reload_tls();
}

void Server::drop_refused() {
  core_->drop_refused();
}

ServerStats Server::stats() const {
  return core_->stats();
}

}  // namespace portway
