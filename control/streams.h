// The answers without an end that are open now: whose they are, how many of them each may have, and what ends
// them.
//
// A stream is opened under a key and, where it is about an instance, under one session of it. It lasts as
// long as both do: when the key is deleted or replaced, when the session ends in whatever way, or when the
// instance is another owner's, what the stream holds (a capture's socket, a check's connection) is closed at
// once and the client gets the end of its body. Every kind of stream is opened here, so a new one has this
// for nothing.
//
// Whether a stream's terms still hold is looked up, not remembered: before each piece that is sent, and by
// recheck(), which makes it prompt.
//
// Belongs to the control thread; the streams may outlive this object, and end with it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "api/http/message.h"
#include "base/error.h"
#include "control/auth.h"
#include "control/registry.h"

namespace portway {

/// How many streams may be open at a time. Told in api/openapi.yaml and docs/api-errors.md.
struct StreamLimits {
  std::size_t node = 64;            // all of them
  std::size_t admins_reserve = 16;  // of those: tenants together cannot take them
  std::size_t tenant = 8;           // of one owner, with all of its tenant keys together
  std::size_t admin = 32;           // of one owner, with all of its admin keys together
};

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
};

class Streams {
 public:
  using Make = std::function<Result<std::shared_ptr<BodyStream>>()>;

  /// Both must outlive it.
  Streams(const KeyRing& keys, const Registry& registry, const StreamLimits& limits = {});
  ~Streams();
  Streams(const Streams&) = delete;
  Streams& operator=(const Streams&) = delete;

  /// The stream that `make` makes, bound to the terms. kConnectionLimit, before anything is made, when the
  /// caller's owner has its share already, or the node (for tenants: all but the admins' reserve) is full;
  /// else make's error.
  Result<std::shared_ptr<BodyStream>> open(const StreamTerms& terms, const Make& make);

  /// Ends the streams whose terms do not hold any more. After a key or an instance has changed.
  void recheck();

 private:
  struct State;
  class Bound;

  const std::shared_ptr<State> state_;  // shared with the streams
};

}  // namespace portway
