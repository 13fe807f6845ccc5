// Watches the virtual machines behind the instances: a session ends when its tap loses its carrier or is
// deleted, or when the VMM's process is gone.
//
// A session is *armed* once its tap has had a carrier; before, the virtual machine is still to come and
// nothing can be lost. An armed session belongs to one interface index and to one process: a tap that is made
// anew under the same name, or a pid that is used again, is another virtual machine.
//
// Belongs to one thread. Everything it waits for is behind one descriptor, so that whoever has to wait for
// something else can go on noticing ends: poll descriptor(), then call dispatch().
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "config/fd.h"
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

  /// Dispatches on `context`, whose thread makes all calls. kResourceExhausted where rtnetlink or epoll(7) is
  /// refused.
  static Result<std::unique_ptr<SessionWatch>> start(boost::asio::io_context& context);
  SessionWatch(const SessionWatch&) = delete;
  SessionWatch& operator=(const SessionWatch&) = delete;

  /// Before the first watch().
  void set_callbacks(Callbacks callbacks) { callbacks_ = std::move(callbacks); }

  /// Readable when dispatch() has something to do.
  int descriptor() const { return events_.get(); }
  /// Calls back for what has happened. Never blocks.
  void dispatch();

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
    std::uint64_t key = 0;       // what epoll(7) tells of its process with
    std::optional<ProcessWatch> process = std::nullopt;
  };

  explicit SessionWatch(boost::asio::io_context& context) : loop_descriptor_(context) {}

  void wait();
  bool add_to_events(int descriptor, std::uint64_t key);
  void on_link(const Link& link, bool gone);
  std::optional<SessionEnd> over_because_of_tap(Instance& instance) const;
  void end(const std::string& instance_id, SessionEnd why);

  Fd events_;                                              // epoll(7)
  boost::asio::posix::stream_descriptor loop_descriptor_;  // of the same epoll(7)
  Callbacks callbacks_;
  std::unique_ptr<LinkMonitor> links_;
  std::unordered_map<std::string, Session> sessions_;      // by instance
  std::unordered_map<std::uint64_t, std::string> by_key_;  // instances with a process
  std::uint64_t last_key_ = 0;                             // 0 is the link monitor's
};

}  // namespace portway
