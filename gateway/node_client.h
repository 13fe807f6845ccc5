// Asks nodes by their own REST API: one HTTP client for all of them.
//
// **Bounds.** Each request under way, and each answer that is still read as a stream, has a connection. Of
// these a node has at most connections_per_node_max, so that a slow one does not take them all; what is
// beyond is refused at once (kBusy). Idle connections are kept for a while, a few for each node.
//
// **Repeats.** A request is sent a second time, once, on a new connection, only if that is safe: if the first
// connection broke before all of it was sent, or if it is repeatable and a kept connection broke before the
// first byte of the answer.
//
// **Answers.** The body is whole if its length is known and at most NodeRequest::whole_max, or if it is JSON
// that ends within that; and of HEAD, 204 and 304. Any other is a stream. It reads on only when what it has
// was taken, and holds at most 64 KiB (and at first what was read of a JSON that is larger than whole_max).
// If the node is silent for too long, or its answer breaks off, the stream is broken (BodyStream::is_broken).
// Its destruction closes the connection.
//
// The lookup of a host's name is the system's, and not ended by a timeout: register nodes by their addresses.
//
// Everything runs on the executor given to create(), which is single-threaded. A client may be destroyed at
// any time, also by a coroutine that it has just resumed: the requests under way end with kClosed, later, in
// a turn of their own, and its streams are broken. It and its streams must be destroyed before the executor's
// context.
#pragma once

#include <array>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/system/result.hpp>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "api/http/message.h"
#include "base/error.h"
#include "fleet/http_values.h"

namespace portway {

enum class NodeErrorKind : std::uint8_t {
  kUnreachable,     // it was not carried out, or it is repeatable
  kUnknownOutcome,  // sent and not answered in full: perhaps it was carried out. Not if it is repeatable
  kTimeout,         // a repeatable one was not answered in time
  kBusy,            // too many requests to this node, or to all, are under way: it was not sent
  kBadAnswer,       // no HTTP, or none that fits: perhaps it was carried out
  kClosed,          // the client was closed: perhaps it was carried out
};
inline constexpr std::size_t kNodeErrorKinds = static_cast<std::size_t>(NodeErrorKind::kClosed) + 1;

/// For logs and metrics: "unreachable", "unknown_outcome".
std::string_view to_string(NodeErrorKind kind);

struct NodeError {
  NodeErrorKind kind = NodeErrorKind::kUnreachable;
  std::string detail = {};  // with the node's URL and, where there is one, the remedy
  bool not_sent = false;    // not the whole request: it was surely not carried out
};

template <class T>
using NodeResult = boost::system::result<T, NodeError>;

/// NodeResult::value() calls it if nobody checked for an error first: a mistake of ours.
[[noreturn]] void throw_exception_from_error(const NodeError& error, const boost::source_location& where);

struct NodeClientOptions {
  HttpTls tls = {};  // for https
  std::chrono::milliseconds connect_timeout{2000};
  std::chrono::milliseconds answer_timeout{
      15'000};  // with connecting; to the head of a stream, else to the end
  // How long a stream may be silent: one of events, which nodes give a heartbeat each 15 s, and any other.
  std::chrono::milliseconds events_silence_max{60'000};
  std::chrono::milliseconds stream_silence_max{120'000};
  std::chrono::milliseconds idle_timeout{50'000};  // a node closes after 60 s
  std::size_t connections_max = 4096;              // in use
  std::size_t connections_per_node_max = 256;      // of which a node lets 64 be streams of its own
  std::size_t idle_max = 256;
  std::size_t idle_per_node_max = 4;
};

struct NodeRequest {
  std::string method = "GET";
  std::string target = "/";  // path and query, percent-encoded
  // Those of the framing and of the one connection (Host, Content-Length, Connection, ...) are left out.
  HttpFields headers = {};
  std::string body = {};
  bool repeatable = false;  // carried out twice it is as good as once
  std::size_t whole_max = 1U << 20;
  std::optional<std::chrono::milliseconds> answer_timeout = std::nullopt;  // in place of the option
};

struct NodeAnswer {
  unsigned status = 0;
  HttpFields headers = {};  // all, as they came: names as sent, some more than once
  std::string body = {};
  std::shared_ptr<BodyStream> stream = nullptr;              // in place of `body`
  std::optional<std::uint64_t> stream_bytes = std::nullopt;  // of the stream, if known

  /// Of the first header of that name, in whatever case; empty: there is none.
  std::string_view header(std::string_view name) const { return field_of(headers, name); }
};

struct NodeClientStats {
  std::uint64_t requests = 0;
  std::array<std::uint64_t, kNodeErrorKinds> errors = {};  // by NodeErrorKind
  std::uint64_t streams_broken = 0;
  std::uint64_t connections_opened = 0;
  std::size_t connections_open = 0;  // now, idle ones included
  std::size_t connections_idle = 0;  // now
};

class NodePool;

class NodeClient {
 public:
  /// kInvalidConfig with the key and the remedy: a file of TLS that does not fit. They are read again for
  /// each connection.
  static Result<std::unique_ptr<NodeClient>> create(const boost::asio::any_io_executor& executor,
                                                    NodeClientOptions options);
  ~NodeClient();
  NodeClient(const NodeClient&) = delete;
  NodeClient& operator=(const NodeClient&) = delete;

  /// `url`: of the node's API, as NodeRecord::address has it: "https://node-1.example:8443". The arguments
  /// are used at once; only the answer has to be awaited.
  boost::asio::awaitable<NodeResult<NodeAnswer>> send(const std::string& url, NodeRequest request);

  /// Ends everything that is under way; nothing can be sent any more.
  void close();

  NodeClientStats stats() const;

 private:
  explicit NodeClient(std::shared_ptr<NodePool> pool) : pool_(std::move(pool)) {}

  const std::shared_ptr<NodePool> pool_;  // shared with what is under way
};

}  // namespace portway
