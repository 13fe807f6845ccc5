// Watches the virtual machines behind the instances: a session ends when its tap loses its carrier or is
// deleted, or when the VMM's process is gone.
//
// A session is *armed* once its tap has had a carrier; before, the virtual machine is still to come and
// nothing can be lost. An armed session belongs to one interface index and to one process: a tap that is made
// anew under the same name, or a pid that is used again, is another virtual machine.
//
// Runs on one Asio io_context, whose thread makes all calls and gets all callbacks.
#pragma once

#include <boost/asio/io_context.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "config/forward.h"
#include "lifecycle/link_monitor.h"
#include "lifecycle/process_watch.h"

namespace portway {

/// Of this boot of the kernel (random(4), /proc/sys/kernel/random/boot_id); empty where it cannot be read.
std::string kernel_boot_id();

enum class TapState : std::uint8_t { kMissing, kNoCarrier, kUp };
std::string_view to_string(TapState state);

class SessionWatch {
 public:
  struct Callbacks {
    /// The tap has a carrier for the first time in this session.
    std::function<void(const std::string& instance_id, std::int32_t tap_index)> on_armed;
    /// The virtual machine is gone; the session is no longer watched.
    std::function<void(const std::string& instance_id, SessionEnd why)> on_end;
  };

  /// kResourceExhausted where rtnetlink is refused.
  static Result<std::unique_ptr<SessionWatch>> start(boost::asio::io_context& context);
  SessionWatch(const SessionWatch&) = delete;
  SessionWatch& operator=(const SessionWatch&) = delete;

  /// Before the first watch().
  void set_callbacks(Callbacks callbacks) { callbacks_ = std::move(callbacks); }

  /// Watches a running instance's session, in place of the instance's earlier one, and arms it where its tap
  /// has a carrier (on_armed is not called then; `instance.tap_index` is set). Why it is over already, or
  /// nothing and it is watched.
  std::optional<SessionEnd> watch(Instance& instance);
  void forget(std::string_view instance_id);

  TapState tap_state(const Instance& instance) const;

 private:
  struct Session {
    std::string tap;
    std::int32_t tap_index = 0;  // 0: not armed
    std::unique_ptr<ProcessWatch> process;
  };

  explicit SessionWatch(boost::asio::io_context& context) : context_(context) {}

  void on_link(const Link& link, bool gone);
  std::optional<SessionEnd> over_because_of_tap(Instance& instance) const;
  void end(const std::string& instance_id, SessionEnd why);

  boost::asio::io_context& context_;
  Callbacks callbacks_;
  std::unique_ptr<LinkMonitor> links_;
  std::unordered_map<std::string, Session> sessions_;  // by instance
};

}  // namespace portway
