// When forwards end by themselves (Forward::expires_at).
//
// Control thread.
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/functional/hash.hpp>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <unordered_map>
#include <utility>

#include "base/forward.h"

namespace portway {

class ForwardExpiries {
 public:
  /// `on_due` is called once for each forward whose time has come; it may set another time.
  ForwardExpiries(boost::asio::io_context& context, std::function<Timestamp()> clock,
                  std::function<void(const ForwardId&)> on_due);

  /// In place of the time it has; nothing: it has none any more.
  void set(const ForwardId& id, std::optional<Timestamp> at);
  /// Now, and not when the timer runs out: somebody may have set the clock.
  void look();

 private:
  void wait();

  boost::asio::steady_timer timer_;
  const std::function<Timestamp()> clock_;
  const std::function<void(const ForwardId&)> on_due_;
  std::set<std::pair<Timestamp, ForwardId>> by_time_;
  std::unordered_map<ForwardId, Timestamp, boost::hash<ForwardId>> times_;
  const std::shared_ptr<bool> alive_ = std::make_shared<bool>(true);  // for the timer's handler
};

}  // namespace portway
