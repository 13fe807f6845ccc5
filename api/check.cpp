#include "api/check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <net/if.h>
#include <sys/socket.h>

#include <algorithm>
#include <array>
#include <boost/asio/steady_timer.hpp>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "api/socket_check.h"
#include "base/fd.h"
#include "base/socket.h"
#include "network/netlink.h"
#include "network/policy_routing.h"
#include "network/source_plan.h"
#include "network/syn_probe.h"

namespace portway {
namespace {

using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

// How often the probes are polled: without CAP_NET_RAW no event reports the guest's answer.
constexpr milliseconds kPollInterval(5);

CheckStep listener_step(const ForwardStatus& status, bool refusing) {
  const std::string where =
      fmt::format("port {} of {}", status.forward.host_port, fmt::join(status.bind_addresses, ", "));
  if (status.state == ForwardState::kDisabled) {
    return {
        "listener", false,
        fmt::format("The forward is disabled: the node keeps {} for it, and does not listen there. Enable "
                    "it (PATCH with {{\"enabled\": true}}).",
                    where)};
  }
  if (status.state == ForwardState::kExpired) {
    return {"listener", false, "The forward has expired (expires_at), and is being deleted; make a new one."};
  }
  if (!status.lost_addresses.empty()) {
    return {
        "listener", false,
        fmt::format("The node does not have {} now, so clients' packets do not arrive. Add the address to an "
                    "interface (ip address add); the forward works again at once.",
                    fmt::join(to_strings(status.lost_addresses), ", "))};
  }
  if (refusing) {
    return {
        "listener", false,
        fmt::format("The node listens on {}, but refuses clients there now, because the guest has refused "
                    "one: guest port {} was closed. The guest is probed every few milliseconds to a second "
                    "(proxy.refused_probe_ms); once it answers, clients get through.",
                    where, status.forward.guest_port)};
  }
  if (status.state != ForwardState::kFailed)
    return {"listener", true, fmt::format("The node listens on {}.", where)};
  return {"listener", false,
          fmt::format(
              "The node does not listen on {}: {} It retries every few seconds; to get another port, delete "
              "the forward and create it again.",
              where, status.reason)};
}

/// The guest's addresses that clients are forwarded to, or the client in question.
std::vector<IpAddress> addresses_in_question(const CheckSubject& subject) {
  const Instance& instance = subject.instance;
  if (!subject.client) return guest_addresses(instance);
  const bool to_v6 = instance.guest_address_v6 && is_genuine_v6(*subject.client);
  return {to_v6 ? *instance.guest_address_v6 : instance.guest_address};
}

SourcePlan plan_to(const CheckSubject& subject, const IpAddress& address) {
  const ForwardSource& source = subject.forward.source;
  return address == subject.instance.guest_address_v6 ? source.plan_v6 : source.plan;
}

/// Why a client is rejected although allowed_cidrs admits it; empty if it is not.
std::string why_rejected(const CheckSubject& subject) {
  const ForwardSource source = subject.forward.source;
  const std::vector<IpAddress> addresses = addresses_in_question(subject);
  for (const IpAddress& address : addresses) {
    if (!source.required || plan_to(subject, address) != SourcePlan::kNoReturnPath) continue;
    return fmt::format(
        "source_mode is transparent, but there is no return path for the answers of {}: its clients are "
        "reset. GET /v1/info or the instance has the reason. Or choose another source_mode.",
        address.to_string());
  }
  if (!subject.client || plan_to(subject, addresses.front()) != SourcePlan::kTransparent) return "";
  const auto plan = plan_source({*subject.client, 0}, {addresses.front(), 0});
  if (!plan) {
    return fmt::format("{} is a link-local address, which no router would forward to a guest: it is reset.",
                       subject.client->to_string());
  }
  if (source.required && *plan == SourcePlan::kFamily) {
    return fmt::format(
        "source_mode is transparent, but the guest cannot see {}, which is of the other address family: it "
        "is reset. Choose another source_mode, or give the instance an address of that family.",
        subject.client->to_string());
  }
  return "";
}

CheckStep source_step(const CheckSubject& subject) {
  const TrafficLimits& limits = subject.forward.forward.limits;
  const std::optional<IpAddress>& client = subject.client;
  if (const std::string why = why_rejected(subject); !why.empty()) return {"source", false, why};
  if (subject.forward.cause == ForwardCause::kLimitReached) return {"source", false, subject.forward.reason};
  if (limits.allowed_cidrs.empty()) return {"source", true, "Clients may connect from anywhere."};
  std::vector<std::string> names;
  for (const Cidr& network : limits.allowed_cidrs) names.push_back(network.to_string());
  const std::string allowed = fmt::format("allowed_cidrs admits {}", fmt::join(names, ", "));
  if (!client)
    return {"source", true, allowed + "; other clients are reset. Check one with ?client=ADDRESS."};
  const bool in = std::ranges::any_of(limits.allowed_cidrs,
                                      [&](const Cidr& network) { return network.contains(*client); });
  if (in) return {"source", true, fmt::format("{}, and so {}.", allowed, client->to_string())};
  return {"source", false, fmt::format("{}; {} is reset. Add its network.", allowed, client->to_string())};
}

CheckStep tap_step(const Instance& instance, TapState state, const std::string& fault) {
  if (const std::string trouble = tap_trouble(instance, state, fault); !trouble.empty())
    return {"tap", false, trouble};
  if (state == TapState::kNone)
    return {"tap", true, fmt::format("The machine is process {}; no tap is watched.", *instance.vmm_pid)};
  return {"tap", true, fmt::format("{} is up and has a carrier.", instance.tap)};
}

CheckStep device_step(const Instance& instance, const std::string& fault) {
  if (!fault.empty()) return {"device", false, fault};
  return {"device", true, fmt::format("{} leads to the guest.", instance.device)};
}

/// What leads to the guest: an interface, and its name for a reader. Index 0: none that is known.
struct Device {
  int index = 0;
  std::string name;
};

/// The session's own tap even if it was renamed, or what is registered as the device.
Device device_to(const Instance& instance, const IpAddress& address) {
  if (instance.device == kByRoute) {
    const auto netlink = Netlink::open();
    const OutputRoute out = netlink ? look_up_output_route(**netlink, address) : OutputRoute{};
    const auto found = out.error == 0 && out.link != 0 ? find_device(**netlink, out.link) : std::nullopt;
    return found ? Device{out.link, found->name} : Device{0, "the node's routes"};
  }
  const std::string name(device_of(instance));
  const bool own = instance.device.empty() && instance.tap_index != 0;
  return {own ? instance.tap_index : static_cast<int>(::if_nametoindex(name.c_str())), name};
}

/// What a connection to the guest is bound to; 0: nothing.
int bound_device(const Instance& instance, const IpAddress& address) {
  return instance.device == kByRoute ? 0 : device_to(instance, address).index;
}

/// Why the kernel would drop the guest's answers to `socket`, which is connected to it; empty if it would
/// not.
std::string why_dropped(const IpAddress& address, const Device& device, const Fd& socket) {
  const auto local = local_endpoint(socket.get());
  auto netlink = Netlink::open();
  if (!netlink || !local) return "";
  const InputRoute in = look_up_input_route(
      **netlink, {.link = device.index, .source = address, .destination = local->address()});
  if (in.error != EXDEV && in.error != EINVAL) return "";
  const std::string guest = address.to_string();
  const OutputRoute out = look_up_output_route(**netlink, address);
  const auto other =
      out.error == 0 && out.link != device.index ? find_device(**netlink, out.link) : std::nullopt;
  if (!other) {
    return fmt::format(
        "The kernel drops packets from {0} over {1}: its source address check (rp_filter) rejects them. Give "
        "{1} an address in the guest's network, or run: ip route add {0} dev {1}",
        guest, device.name);
  }
  return fmt::format(
      "The kernel drops packets from {0} over {1}: the route to {0} leads over {2}, and {1} checks source "
      "addresses strictly (rp_filter is 1). If the machine behind {2} has the same address, let {1} admit it "
      "all the same: sysctl -w net/ipv4/conf/{1}/rp_filter=2 (or 0, if net.ipv4.conf.all.rp_filter is 0), "
      "and "
      "likewise on each tap to a machine with that address. Otherwise run: ip route add {0} dev {1}",
      guest, device.name, other->name);
}

/// Looks up the route with a socket like the data plane's upstream ones; connecting a datagram socket sends
/// nothing.
CheckStep route_step(const Instance& instance, const IpAddress& address) {
  const Device device = device_to(instance, address);
  const int bound = bound_device(instance, address);
  const Endpoint guest = on_link({address, 9}, bound);
  const Fd socket(::socket(guest.address().is_v6() ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (::setsockopt(socket.get(), SOL_SOCKET, SO_BINDTOIFINDEX, &bound, sizeof bound) == 0 &&
      ::connect(socket.get(), guest.data(), static_cast<socklen_t>(guest.size())) == 0) {
    if (const std::string why = why_dropped(address, device, socket); !why.empty())
      return {"route", false, why};
    return {"route", true, fmt::format("{} is reached over {}.", address.to_string(), device.name)};
  }
  if (instance.device == kByRoute) {
    return {
        "route", false,
        fmt::format("There is no route to {} ({}). Add one, or register the instance with the device that "
                    "leads to it.",
                    address.to_string(), std::strerror(errno))};
  }
  return {
      "route", false,
      fmt::format("There is no route to {0} over {1} ({2}). Give {3} an address in the guest's network, or "
                  "run: ip route add {0} dev {1}",
                  address.to_string(), device.name, std::strerror(errno),
                  instance.device.empty() ? "the tap" : device.name)};
}

/// The client address to probe the guest from, if it would see one: the client in question, or one that
/// stands for any.
std::optional<IpAddress> probing_client(const CheckSubject& subject, const Endpoint& guest) {
  if (plan_to(subject, guest.address()) != SourcePlan::kTransparent) return std::nullopt;
  const IpAddress client = subject.client.value_or(any_client(guest.address().is_v6()));
  const auto plan = plan_source({client, 0}, guest);
  return plan && is_transparent(*plan) ? std::optional(client) : std::nullopt;
}

/// One check. Only its reader owns it: if the client goes away, the probes end.
class Check final : public BodyStream, public std::enable_shared_from_this<Check> {
 public:
  Check(boost::asio::io_context& context, const CheckSubject& subject) : subject_(subject), timer_(context) {}

  void start(milliseconds timeout) {
    add(listener_step(subject_.forward, subject_.refusing));
    add(source_step(subject_));
    if (subject_.socket) return check_socket(timeout);
    add(tap_step(subject_.instance, subject_.tap_state, subject_.tap_fault));
    bool linked = steps_.back().ok;
    if (const std::string& device = subject_.instance.device; !device.empty() && device != kByRoute) {
      add(device_step(subject_.instance, subject_.tap_fault));
      linked &= steps_.back().ok;
    }
    if (!linked) return finish();
    // Routes are looked up and sockets made where the guest is; they stay there.
    std::optional<InNamespace> inside;
    if (subject_.netns) {
      auto entered = subject_.netns->enter();
      if (!entered) {
        add({"route", false, entered.error().detail});
        return finish();
      }
      inside.emplace(std::move(*entered));
    }
    for (const IpAddress& address : addresses_in_question(subject_)) {
      add(route_step(subject_.instance, address));
      if (!steps_.back().ok && subject_.netns) {
        steps_.back().detail += " This is so in the guest's network namespace: change it there.";
      }
      if (!steps_.back().ok) continue;
      guests_.push_back({.guest = {address, subject_.forward.forward.guest_port},
                         .behind = device_to(subject_.instance, address).name});
    }
    if (guests_.empty()) return finish();
    probe(timeout);
  }

  std::optional<std::string> read() override {
    if (!finished_) return "";
    if (std::exchange(read_, true)) return std::nullopt;
    return text();
  }
  std::string finish_early() override {
    if (!finished_) {
      add({"guest", false,
           "The instance's session ended before its guest answered: nothing is behind the forward any "
           "more."});
      finish();
    }
    return read_ ? std::string() : text();
  }
  void on_ready(std::function<void()> wake) override { wake_ = std::move(wake); }

 private:
  std::string text() const {
    boost::json::array list;
    for (const CheckStep& step : steps_) {
      list.push_back({{"step", step.step}, {"ok", step.ok}, {"detail", step.detail}});
    }
    const bool ok = std::ranges::all_of(steps_, [](const CheckStep& step) { return step.ok; });
    return boost::json::serialize(boost::json::object{{"check", {{"ok", ok}, {"steps", std::move(list)}}}});
  }

  void add(CheckStep step) { steps_.push_back(std::move(step)); }

  void finish() {
    finished_ = true;
    guests_.clear();
    socket_.reset();
    if (wake_) wake_();
  }

  /// The guest's port, probed from one address.
  struct Probe {
    SynProbe socket;
    int answer = -EAGAIN;
  };
  enum : std::size_t { kFromNode, kFromClient };
  /// The port at one of the guest's addresses.
  struct Guest {
    Endpoint guest;
    std::string behind;                              // what leads to it
    std::optional<IpAddress> client = std::nullopt;  // probed from it too, besides the node
    std::array<Probe, 2> probes = {};
    milliseconds after{};  // when the last probe was answered
    bool answered = false;
  };

  void check_socket(milliseconds timeout) {
    const Result<SocketTarget>& target = *subject_.socket;
    if (!target) {
      add({"socket", false, target.error().detail});
      return finish();
    }
    deadline_ = began_ + timeout;
    socket_.emplace(*target);
    poll();
  }

  milliseconds elapsed() const {
    return std::chrono::duration_cast<milliseconds>(steady_clock::now() - began_);
  }

  void probe(milliseconds timeout) {
    deadline_ = began_ + timeout;
    for (Guest& guest : guests_) {
      guest.client = probing_client(subject_, guest.guest);
      SynProbeTarget target{.guest = guest.guest,
                            .device = bound_device(subject_.instance, guest.guest.address())};
      open(guest.probes[kFromNode], target);
      target.source = guest.client;
      if (guest.client) open(guest.probes[kFromClient], target);
    }
    poll();
  }

  static void open(Probe& probe, const SynProbeTarget& target) {
    const int error = SynProbe::open(target, probe.socket);
    if (error != 0) probe.answer = error;
  }

  /// False while an answer is missing.
  bool poll(Guest& guest) const {
    const bool over = steady_clock::now() >= deadline_;
    bool waiting = false;
    for (std::size_t i = 0; i < (guest.client ? guest.probes.size() : 1); ++i) {
      Probe& probe = guest.probes[i];
      if (probe.answer == -EAGAIN) probe.answer = probe.socket.answer();
      if (probe.answer == -EAGAIN && over) probe.answer = -ETIMEDOUT;
      waiting |= probe.answer == -EAGAIN;
    }
    if (!waiting && !std::exchange(guest.answered, true)) guest.after = elapsed();
    return !waiting;
  }

  void poll() {
    if (finished_) return;
    bool waiting = false;
    for (Guest& guest : guests_) waiting |= !poll(guest);
    if (socket_) waiting |= !socket_->poll(steady_clock::now() >= deadline_);
    if (!waiting) return answered();
    timer_.expires_after(kPollInterval);
    timer_.async_wait([weak = weak_from_this()](error_code cancelled) {
      const auto self = weak.lock();
      if (self && !cancelled) self->poll();
    });
  }

  void answered() {
    if (socket_) {
      for (CheckStep& step : socket_->steps(elapsed())) add(std::move(step));
    }
    for (const Guest& guest : guests_) {
      GuestAnswers answers;
      answers.node = -guest.probes[kFromNode].answer;
      answers.any_client = !subject_.client;
      if (guest.client) {
        answers.client = -guest.probes[kFromClient].answer;
        answers.client_address = *guest.client;
      }
      answers.behind = guest.behind;
      answers.after = guest.after;
      add(guest_step(guest.guest, answers));
    }
    finish();
  }

  const CheckSubject subject_;
  const steady_clock::time_point began_ = steady_clock::now();
  steady_clock::time_point deadline_;
  std::vector<Guest> guests_;          // the addresses to probe
  std::optional<SocketCheck> socket_;  // or the socket
  boost::asio::steady_timer timer_;
  std::vector<CheckStep> steps_;
  std::function<void()> wake_;
  bool finished_ = false;
  bool read_ = false;
};

/// Every probe got this answer; `whence` says from where they were sent.
CheckStep one_answer(const Endpoint& guest, int error, const std::string& whence, const std::string& behind,
                     milliseconds after) {
  const std::string where = to_string(guest);
  switch (error) {
    case 0:
      return {"guest", true,
              fmt::format("A service accepts connections on {}{} ({} ms).", where, whence, after.count())};
    case ECONNREFUSED:
      return {
          "guest", false,
          fmt::format(
              "The guest answers{}, but nothing listens on {}. Start the service. If it is running, is it "
              "bound to 0.0.0.0 (or ::), not to 127.0.0.1?",
              whence, where)};
    case ETIMEDOUT:
      return {"guest", false,
              fmt::format("The guest does not answer{} on {} within {} ms. Is it still booting or paused, or "
                          "does its own firewall drop packets?",
                          whence, where, after.count())};
    case EHOSTUNREACH:
      return {"guest", false,
              fmt::format("Nothing behind {} has the address {}. Compare guest_address with the guest's own "
                          "configuration.",
                          behind, guest.address().to_string())};
    case EADDRNOTAVAIL:
      return {"guest", false,
              fmt::format("No source port is free towards {}: too many connections to it have ended within a "
                          "minute. Give portwayd CAP_NET_ADMIN, set net.ipv4.tcp_tw_reuse to 1, or widen "
                          "net.ipv4.ip_local_port_range.",
                          where)};
    case EPERM:
      return {"guest", true,
              fmt::format("{} was not probed: that needs CAP_NET_ADMIN or CAP_NET_RAW.", where)};
    default:
      return {"guest", false, fmt::format("The node cannot connect to {}: {}.", where, std::strerror(error))};
  }
}

/// The client's address and the node's got different answers.
CheckStep two_answers(const Endpoint& guest, int node, int client, const std::string& from,
                      milliseconds after) {
  constexpr std::string_view kFilterOrRoute =
      "Does it have a default route to the node, and does its own firewall admit clients? With source_mode "
      "plain, clients come from the node's address.";
  const std::string where = to_string(guest);
  if (client == 0) {
    return {"guest", true,
            fmt::format(
                "A service accepts connections on {}{} ({} ms). The node's own address gets no such answer, "
                "but no client depends on it.",
                where, from, after.count())};
  }
  if (client == ECONNREFUSED) {
    return {"guest", false,
            node == 0
                ? fmt::format("A service on {} answers the node, but the guest refuses connections{}, "
                              "probably by its own firewall. Admit them there.",
                              where, from)
                : fmt::format("The guest refuses connections to {}{}: nothing listens, or its own firewall "
                              "refuses them. It does not answer the node at all.",
                              where, from)};
  }
  if (client == ETIMEDOUT) {
    return {"guest", false,
            node == 0
                ? fmt::format(
                      "A service on {} answers the node, but the guest does not answer{} within {} ms. {}",
                      where, from, after.count(), kFilterOrRoute)
                : fmt::format("The guest refuses the node on {}: nothing listens there. It does not answer{} "
                              "within {} ms. Start the service. {}",
                              where, from, after.count(), kFilterOrRoute)};
  }
  return {"guest", false,
          fmt::format("The node cannot connect to {}{}: {}.", where, from, std::strerror(client))};
}

}  // namespace

CheckStep guest_step(const Endpoint& guest, const GuestAnswers& answers) {
  const auto& [node, client, address, any_client, behind, after] = answers;
  // Only for probes from its own address does the kernel report that nothing answers ARP.
  if (!client || *client == EPERM || (node == EHOSTUNREACH && *client == ETIMEDOUT)) {
    return one_answer(guest, node, "", behind, after);
  }
  const std::string from =
      any_client
          ? fmt::format(" from clients' addresses (probed from {}; ?client=ADDRESS probes from another)",
                        address.to_string())
          : fmt::format(" from {}", address.to_string());
  if (*client == node) return one_answer(guest, node, from + " and from the node", behind, after);
  return two_answers(guest, node, *client, from, after);
}

std::shared_ptr<BodyStream> check_forward(boost::asio::io_context& context, const CheckSubject& subject,
                                          milliseconds timeout) {
  auto check = std::make_shared<Check>(context, subject);
  check->start(timeout);
  return check;
}

}  // namespace portway
