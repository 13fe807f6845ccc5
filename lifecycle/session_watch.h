// Watches the virtual machines behind the instances: a session ends when its tap loses its carrier or is
// deleted, or when the VMM's process is gone.
//
// A session is *armed* once its tap has had a carrier; before, the virtual machine is still to come and
// nothing can be lost. An armed session belongs to one interface index, to the time since one loss of its
// carrier, and to one process. So a tap that is created again under the same name, a machine that takes the
// place of another on the same tap, or a pid that is used again is another virtual machine, also where nobody
// saw the change; and a tap that is renamed is the same one. Two sessions are never behind one interface.
//
// A session that is not armed goes by its tap's name. It remembers the tap as it was first seen up and
// without a carrier: a carrier that was lost since then is a machine that has come and gone unseen. What
// happens to a tap while it is down (`ip link set down`) is its being made, not a machine. Where another
// session has the interface of that name, it waits for that one's end as well.
//
// What cannot be seen is not gone: where the kernel refuses to tell of a process or of the links, the
// sessions stay, and it is asked again, every 100 ms, until it answers.
//
// Belongs to one thread. Everything it waits for is behind one descriptor, so that whoever has to wait for
// something else can still notice ends: poll descriptor(), then call dispatch().
#pragma once

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/fd.h"
#include "base/forward.h"
#include "lifecycle/link_monitor.h"
#include "lifecycle/process_watch.h"

namespace portway {

enum class TapState : std::uint8_t { kMissing, kNoCarrier, kUp };
std::string_view to_string(TapState state);

class SessionWatch {
 public:
  struct Callbacks {
    /// The tap has a carrier for the first time in this session.
    std::function<void(const std::string& instance_id, const TapIdentity& tap)> on_armed;
    /// The session is not armed, and what is to be remembered of its tap has changed (Instance::idle_tap).
    std::function<void(const std::string& instance_id, const TapIdentity& tap)> on_idle_tap;
    /// The tap of an armed session is called `name` from now on.
    std::function<void(const std::string& instance_id, const std::string& name)> on_renamed;
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
  /// The same once there is something, or the time is over.
  void dispatch_within(std::chrono::milliseconds timeout);

  /// As dispatch(), and what is known of this instance's tap is true now (LinkMonitor::refresh()).
  void refresh(const std::string& instance_id);

  /// Finds out what distinguishes the machine of a new session from a later one (Instance says what that is),
  /// as it is now: what has happened so far is worked off. Errors are identify_process()'s.
  Result<void> identify(Instance& instance);
  /// The same of its process alone. kInvalidRequest when there is no process `vmm_pid`; kResourceExhausted
  /// if it is not known now when that process began, so that a later one with its pid could pass for it.
  static Result<void> identify_process(Instance& instance);

  /// Watches a running instance's session, in place of the instance's earlier one. What is found out about
  /// its machine (Instance: "what distinguishes this session's virtual machine from a later one") is compared
  /// with what `instance` has, and added to it; on_armed and on_idle_tap are not called then. Why the session
  /// is over already, or nothing and it is watched.
  std::optional<SessionEnd> watch(Instance& instance);
  /// The session, which is watched, has this process from now on, or none. Why it is over already.
  std::optional<SessionEnd> set_process(const Instance& instance);
  void forget(std::string_view instance_id);

  /// Would it be found out again, whatever happens from now on to its tap and its process, that the machine
  /// is gone of a session that is known like this? An index and a process do not come back, and a count does
  /// not go back; but a tap that is down may be up again, and what is not known of a session cannot be
  /// compared.
  bool stays_over(const Instance& known) const;

  /// The interface that the session is behind, or would be if its tap had a carrier now; 0: there is none.
  std::int32_t interface_of(const Instance& instance) const;
  TapState tap_state(const Instance& instance) const;
  /// Why no connection can go through that interface, whatever its state is: it is the loopback, or a part of
  /// something that takes all that comes in by it (a bridge's port). A sentence with the remedy; empty where
  /// nothing is known of it.
  std::string tap_fault(const Instance& instance) const;

  /// Processes whose end no event reports, so they are polled.
  std::size_t processes_unseen() const { return unseen_.size(); }

 private:
  struct Session {
    std::string name;       // of its tap: while it is armed as it is now, before as it was registered
    TapIdentity tap;        // once it is armed
    TapIdentity idle_tap;   // before
    std::uint64_t key = 0;  // with which epoll(7) reports its process
    std::optional<ProcessWatch> process = std::nullopt;
    bool in_events = false;  // its process's descriptor is

    bool armed() const { return tap.index != 0; }
    std::int32_t index() const { return armed() ? tap.index : idle_tap.index; }
  };
  /// What a look at its tap says about a session.
  struct TapLook {
    std::optional<SessionEnd> over = std::nullopt;
    TapIdentity tap = {};  // both as they are from now on
    TapIdentity idle_tap = {};
  };

  explicit SessionWatch(boost::asio::io_context& context) : loop_descriptor_(context) {}

  void wait();
  bool add_to_events(int descriptor, std::uint64_t key);
  void on_tick();
  void set_timer();
  void look_at_process(const std::string& instance_id);
  ProcessState start_process(Session& session, const Instance& instance);
  void wait_for_process(const std::string& instance_id, ProcessState state);
  void on_link(const Link& link, bool gone);
  void free_interface(const Session& session);
  void look_at_waiting();
  TapLook look_at_tap(const std::string& instance_id, std::string_view tap_name, const TapIdentity& tap,
                      const TapIdentity& idle_tap) const;
  void look_again(const std::string& instance_id);
  void add_to_indices(const std::string& instance_id, const Session& session);
  void remove_from_indices(const std::string& instance_id, const Session& session);
  bool is_others(int index, const std::string& instance_id) const;
  void end(const std::string& instance_id, SessionEnd why);

  Fd events_;  // epoll(7)
  Fd timer_;   // runs while something has to be asked or looked at again
  bool timer_runs_ = false;
  boost::asio::posix::stream_descriptor loop_descriptor_;  // of the same epoll(7)
  Callbacks callbacks_;
  std::unique_ptr<LinkMonitor> links_;
  std::unordered_map<std::string, Session> sessions_;  // by instance
  std::unordered_map<int, std::string> by_index_;      // instances by Session::index()
  std::unordered_multimap<std::string, std::string>
      by_name_;                                            // those that are not armed, by their tap's name
  std::unordered_map<std::uint64_t, std::string> by_key_;  // those with a process
  std::uint64_t last_key_ = 1;                             // smaller ones are the watch's own
  std::set<std::string> unseen_;                           // instances whose process has to be asked for
  std::string last_asked_;                                 // of those
  std::set<int> freed_;  // interfaces that a session let go of: others may wait for their names
};

}  // namespace portway
