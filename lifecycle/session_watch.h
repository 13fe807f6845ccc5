// Watches the virtual machines behind the instances: a session ends when its tap loses its carrier or is
// deleted, or when the VMM's process is gone.
//
// A session is *armed* once its tap has had a carrier; before that, the virtual machine has not started
// and there is nothing to lose. An armed session belongs to one interface index, one carrier (as counted
// by its losses) and one process. So a tap created again under the same name, another machine on the same
// tap, or a reused pid is another virtual machine, even if nobody saw the change. A renamed tap is the
// same one. Two sessions never share an interface.
//
// A session that is not armed is identified by its tap's name. It remembers the tap as it was first seen
// up and without a carrier: a carrier lost since then means that a machine has come and gone unseen.
// Changes to a tap that is down (`ip link set down`) are part of its setup, not a machine. If another
// session has the interface of that name, this one also waits for the end of the other.
//
// A guest may be reached through another interface than its tap, such as the bridge that the tap is a port
// of. That interface belongs to the node, not to the session: its name counts, and its end ends nothing.
//
// The guest and its tap may each be in a network namespace of their own. A session holds one descriptor of
// it, which keeps it alive, so the kernel does not report its end. What ends the session is that the
// namespace's name is gone or leads elsewhere: names are looked up whenever something is mounted or unmounted
// on the node
// (/proc/self/mountinfo, proc(5)). A namespace that has no name is that of a process, which is watched.
//
// What cannot be seen is not gone: if the kernel refuses to report a process or the links, or to open a
// namespace after a restart, the sessions stay, and the watch asks again every 100 ms until it gets an
// answer.
//
// Belongs to one thread. One descriptor covers everything it waits for, so a caller that waits for
// something else can still notice ends: poll descriptor(), then call dispatch().
#pragma once

#include <sys/epoll.h>

#include <boost/asio/io_context.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "base/fd.h"
#include "base/forward.h"
#include "lifecycle/link_monitor.h"
#include "lifecycle/named_devices.h"
#include "lifecycle/process_watch.h"
#include "lifecycle/watched_namespaces.h"

namespace portway {

enum class TapState : std::uint8_t {
  kMissing,
  kNoCarrier,
  kUp,
  kNone,  // the instance has none: its process alone is watched
};
std::string_view to_string(TapState state);

class SessionWatch {
 public:
  struct Callbacks {
    /// The tap has a carrier for the first time in this session.
    std::function<void(const std::string& instance_id, const TapIdentity& tap)> on_armed;
    /// The session is not armed, and the remembered state of its tap has changed (Instance::idle_tap).
    std::function<void(const std::string& instance_id, const TapIdentity& tap)> on_idle_tap;
    /// The tap of an armed session is called `name` from now on.
    std::function<void(const std::string& instance_id, const std::string& name)> on_renamed;
    /// The interface that Instance::device names is another one now, or there is none or one again.
    std::function<void(const std::string& instance_id)> on_device;
    /// The virtual machine is gone; the session is no longer watched. Its namespaces are let go afterwards.
    std::function<void(const std::string& instance_id, SessionEnd why)> on_end;
  };

  /// Dispatches on `context`, whose thread makes all calls. kResourceExhausted if rtnetlink or epoll(7) is
  /// refused. Namespaces are opened below `netns_directories` only, which must outlive it and may change
  /// between two calls.
  static Result<std::unique_ptr<SessionWatch>> start(
      boost::asio::io_context& context, const std::vector<std::string>& netns_directories = kNoDirectories);
  SessionWatch(const SessionWatch&) = delete;
  SessionWatch& operator=(const SessionWatch&) = delete;

  /// Call it before the first watch().
  void set_callbacks(Callbacks callbacks) { callbacks_ = std::move(callbacks); }

  /// Readable if dispatch() has something to do.
  int descriptor() const { return events_.get(); }
  /// Makes the callbacks for what has happened. Never blocks.
  void dispatch();
  /// The same, but waits until there is something, at most `timeout`.
  void dispatch_within(std::chrono::milliseconds timeout);

  /// As dispatch(), and also brings this instance's tap (LinkMonitor::refresh()) and the paths of its
  /// namespaces up to date.
  void refresh(const std::string& instance_id);
  /// Ends sessions whose namespace's path leads to it no more although nothing was unmounted: a directory
  /// above it was renamed, which nobody reports. Call it every few seconds.
  void look_at_names();

  /// The namespaces of an instance's guest and of its tap; null: the node's own.
  struct Namespaces {
    WatchedNamespaces::Ptr guest;
    WatchedNamespaces::Ptr tap;
  };
  /// Finds out what distinguishes the machine of a new session from a later one (see Instance), after
  /// processing pending events. Keep the answer until watch(): it holds the namespaces that were identified.
  /// Errors are those of identify_process() and NetworkNamespace::open(), with the field "netns" or
  /// "tap_netns".
  Result<Namespaces> identify(Instance& instance);
  /// The same for its process alone. kInvalidRequest if there is no process `vmm_pid`; kResourceExhausted
  /// if its start time cannot be read now: a later process with its pid could pass for it.
  static Result<void> identify_process(Instance& instance);

  /// Watches a running instance's session, in place of the instance's earlier one. Compares what it finds
  /// out about the machine (Instance: "what distinguishes this session's virtual machine from a later
  /// one") with `instance`, and adds it there without calling on_armed and on_idle_tap. Returns why the
  /// session is already over; nullopt: it is watched.
  std::optional<SessionEnd> watch(Instance& instance);
  /// Changes the process of a watched session, possibly to none. Returns why the session is already over.
  std::optional<SessionEnd> set_process(const Instance& instance);
  void forget(std::string_view instance_id);

  /// Whether later checks would again find that the machine of this session is gone, whatever happens to
  /// its tap and process from now on. An index and a process do not come back, and a count does not go
  /// back; but a tap that is down may come up again, and unknown values cannot be compared.
  bool stays_over(const Instance& known) const;

  /// The session's interface, or what it would be if its tap had a carrier now.
  LinkId interface_of(const Instance& instance) const;
  /// The interface that Instance::device names now.
  LinkId device_of(const Instance& instance) const;
  /// Where connections to the guest are made; null: in the node's own namespace. kResourceExhausted if it is
  /// another one and could not be opened since the start.
  Result<NetworkNamespace::Ptr> netns_of(const Instance& instance) const;
  /// Opens it for an instance that is not watched. An error also if its name leads to another one by now.
  Result<NetworkNamespace::Ptr> open_netns(const Instance& instance) const;
  /// The same as netns_of() for its tap.
  Result<NetworkNamespace::Ptr> netns_of_tap(const Instance& instance) const;
  TapState tap_state(const Instance& instance) const;
  /// Why no connection can go through that interface, whatever its state: it is the loopback, or it
  /// belongs to a device that takes all its input (a bridge port). A sentence with the remedy; empty if no
  /// fault is known.
  std::string tap_fault(const Instance& instance) const;

  /// Network namespaces of guests and taps that are held open.
  std::size_t namespaces() const { return spaces_->size(); }

  /// Processes whose end no event reports, so they are polled.
  std::size_t processes_unseen() const { return unseen_.size(); }

 private:
  static const std::vector<std::string> kNoDirectories;

  // Keys of what epoll(7) reports; processes have the keys after these.
  static constexpr std::uint64_t kLinks = 0;
  static constexpr std::uint64_t kTimer = 1;
  static constexpr std::uint64_t kMounts = 2;

  /// A network namespace as an instance names it.
  struct Place {
    std::string name = {};  // Instance::netns; empty: the node's own
    NamespaceIdentity identity = {};
    WatchedNamespaces::Ptr space = nullptr;  // null: the node's own, or it could not be opened yet

    std::string fault = {};  // why it could not

    bool is_open() const { return name.empty() || space != nullptr; }
    bool has_path() const { return name.starts_with('/'); }
    bool is_gone() const;
    NetnsId id() const;
  };
  struct Session {
    std::string name;       // the tap's: if armed the current one, else the registered one
    std::string device;     // as Instance::device names it; empty: none that has to be watched
    Place guest_place;      // of the device
    Place tap_place;        //
    TapIdentity tap;        // if armed
    TapIdentity idle_tap;   // if not armed
    std::uint64_t key = 0;  // epoll(7) reports its process with it
    std::optional<ProcessWatch> process = std::nullopt;
    bool in_events = false;  // the process's descriptor is

    bool armed() const { return tap.index != 0; }
    LinkId link() const { return {tap_place.id(), armed() ? tap.index : idle_tap.index}; }
    bool has_lost_its_name() const {
      // Both have the same name as a rule: one look is enough.
      return guest_place.is_gone() || (tap_place.name != guest_place.name && tap_place.is_gone());
    }
  };
  /// What a check of its tap says about a session.
  struct TapLook {
    std::optional<SessionEnd> over = std::nullopt;
    TapIdentity tap = {};  // the session's new values
    TapIdentity idle_tap = {};
  };

  SessionWatch(boost::asio::io_context& context, const std::vector<std::string>& netns_directories)
      : netns_directories_(netns_directories), loop_descriptor_(context) {}

  void wait();
  bool add_to_events(int descriptor, std::uint64_t key, std::uint32_t events = EPOLLIN);
  void on_tick();
  void set_timer();
  void look_at_process(const std::string& instance_id);
  ProcessState start_process(Session& session, const Instance& instance);
  void wait_for_process(const std::string& instance_id, ProcessState state);
  void on_link(const Link& link, bool gone);
  int index_of(NetnsId netns, const std::string& name) const;
  void free_interface(const Session& session);
  void look_at_waiting();
  TapLook look_at_tap(const std::string& instance_id, NetnsId netns, std::string_view tap_name,
                      const TapIdentity& tap, const TapIdentity& idle_tap) const;
  void look_again(const std::string& instance_id);
  void add_to_indices(const std::string& instance_id, const Session& session);
  void remove_from_indices(const std::string& instance_id, const Session& session);
  bool is_others(const LinkId& link, const std::string& instance_id) const;
  void end(const std::string& instance_id, SessionEnd why);

  // Namespaces.
  Result<WatchedNamespaces::Ptr> open_namespace(std::string_view name, const ProcessWatch* process);
  std::optional<SessionEnd> open_places(Session& session);
  Result<NetworkNamespace::Ptr> find_open(const std::string& instance_id, const NamespaceIdentity& identity,
                                          Place Session::*place) const;
  NetnsId id_of(std::string_view name, const NamespaceIdentity& identity) const;
  Result<void> watch_mounts();
  void look_at_mounts();
  void open_again();

  const std::vector<std::string>& netns_directories_;
  Fd events_;  // epoll(7)
  Fd timer_;   // runs while something must be checked again
  bool timer_runs_ = false;
  // /proc/self/mountinfo, opened twice: whoever polls it takes its event, and all of epoll(7) polls the one
  // that it has.
  Fd mounts_event_;                                        // in events_
  Fd mounts_;                                              // polled by look_at_mounts() only
  boost::asio::posix::stream_descriptor loop_descriptor_;  // of the same epoll(7)
  Callbacks callbacks_;
  std::unique_ptr<LinkMonitor> links_;
  std::optional<WatchedNamespaces> spaces_;            // of links_
  std::unordered_map<std::string, Session> sessions_;  // by instance
  std::map<LinkId, std::string> by_link_;              // instances by Session::link()
  using Name = std::pair<NetnsId, std::string>;
  std::multimap<Name, std::string> by_name_;               // sessions not armed, by their tap's name
  std::unordered_map<std::uint64_t, std::string> by_key_;  // sessions with a process
  std::uint64_t last_key_ = kMounts;                       // lower keys are the watch's own
  std::set<std::string> unseen_;                           // instances whose process must be polled
  std::string last_asked_;                                 // last one polled
  std::set<std::string> named_;                            // instances with a namespace that has a path
  std::set<std::string> unopened_;  // instances with a namespace that could not be opened yet
  std::map<NetnsId, NamedDevices> devices_;
  std::set<LinkId> freed_;  // interfaces that a session released: others may wait for their names
};

}  // namespace portway
