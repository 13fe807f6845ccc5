// The answers without an end that are open now: whose they are, how many of them each may have, and what ends
// them.
//
// A stream is opened under a key and, if it is about an instance, under one session of it. It lasts as long
// as both do: when the key is deleted, has expired or loses the secret that it was opened with, when the
// session ends in whatever way, or when the instance is another owner's, what the stream holds (a capture's
// socket, a check's connection) is closed at once and the client gets the end of its body. Every kind of
// stream is opened under a StreamTicket (api/ticketed_stream.h), so a new one has this for nothing.
//
// Whether a stream's terms still hold is looked up, not remembered: before each piece that is sent, and by
// recheck(), which makes it prompt.
//
// Belongs to the control thread; tickets may outlive this object, and are void from then on.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "base/error.h"
#include "control/auth.h"
#include "control/registry.h"

namespace portway {

/// How many streams may be open at a time. Documented in api/openapi.yaml and docs/api-errors.md.
struct StreamLimits {
  std::size_t node = 64;            // all of them
  std::size_t admins_reserve = 16;  // of those: tenants together cannot take them
  std::size_t tenant = 8;           // of one owner, with all of its tenant keys together: owners.max_streams
  std::size_t instance = 4;         // of those: of one instance, with all keys together that are for it alone
  std::size_t admin = 32;           // of one owner, with all of its admin keys together
};

/// kRelayed: at a gateway, whatever a node sends without a known end.
enum class StreamKind : std::uint8_t { kEvents, kCheck, kCapture, kBackup, kRelayed };
inline constexpr std::size_t kStreamKinds = static_cast<std::size_t>(StreamKind::kRelayed) + 1;
/// For messages, in the plural.
std::string_view to_string(StreamKind kind);

/// Of an owner's share, how much streams of one kind can take: event streams that are left open leave room
/// for a check.
constexpr std::size_t share_of_one_kind(std::size_t owners_share) {
  return owners_share - owners_share / 4;
}

/// What a stream about an instance belongs to.
struct StreamSubject {
  std::string instance_id;
  Uuid session_id{};
  std::int32_t tap_index = 0;  // the interface that it looks at; 0: none
};

/// What a stream is opened under.
struct StreamTerms {
  Principal caller;
  std::optional<StreamSubject> subject = std::nullopt;
  StreamKind kind = StreamKind::kEvents;
};

class StreamTicket;

class Streams {
 public:
  /// Both must outlive it.
  Streams(const KeyRing& keys, const Registry& registry, const StreamLimits& limits = {});
  ~Streams();
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  /// A place for a stream, until the ticket is destroyed. kStreamLimit if the caller's owner has its share
  /// already, of all streams or of this kind; kConnectionLimit if the node (for tenants: all but the admins'
  /// reserve) is full.
  Result<std::unique_ptr<StreamTicket>> open(const StreamTerms& terms);

  /// StreamLimits::tenant from now on; those that are open stay.
  void set_tenant_share(std::size_t streams);

  /// Ends the streams whose terms do not hold any more. After a key or an instance has changed.
  void recheck();

 private:
  friend StreamTicket;
  struct State;

  const std::shared_ptr<State> state_;  // shared with the tickets
};

class StreamTicket {
 public:
  enum class Validity : std::uint8_t {
    kValid,
    kSubjectGone,  // the caller may still get the stream's last words
    kKeyGone,      // nothing more may be said to the caller
  };

  StreamTicket(std::shared_ptr<Streams::State> state, StreamTerms terms);
  ~StreamTicket();
  StreamTicket(const StreamTicket&) = delete;
  StreamTicket& operator=(const StreamTicket&) = delete;

  const Principal& caller() const { return terms_.caller; }
  StreamKind kind() const { return terms_.kind; }
  /// At this moment.
  Validity validity() const;
  /// `recheck` is called whenever the terms may not hold any more. It must not destroy a ticket.
  void on_recheck(std::function<void()> recheck) { recheck_ = std::move(recheck); }

 private:
  friend Streams;

  const std::shared_ptr<Streams::State> state_;
  const StreamTerms terms_;
  std::function<void()> recheck_;
  const std::list<StreamTicket*>::iterator place_;
};

}  // namespace portway
