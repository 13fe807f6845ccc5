#include "api/check.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/socket.h>

#include <algorithm>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json.hpp>
#include <cerrno>
#include <cstring>
#include <utility>

#include "config/fd.h"

namespace portway {
namespace {

using boost::system::error_code;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

CheckStep listener_step(const ForwardStatus& status) {
  const std::string where = fmt::format("{}:{}", status.bind_address, status.forward.host_port);
  if (status.failure.empty()) return {"listener", true, fmt::format("The node listens on {}.", where)};
  return {
      "listener", false,
      fmt::format("The node does not listen on {}: {} It is tried again every few seconds; to get another "
                  "port, delete the forward and make it anew.",
                  where, status.failure)};
}

CheckStep source_step(const TrafficLimits& limits, const std::optional<IpAddress>& client) {
  if (limits.allowed_cidrs.empty()) return {"source", true, "Clients may come from anywhere."};
  std::vector<std::string> names;
  for (const Cidr& network : limits.allowed_cidrs) names.push_back(network.to_string());
  const std::string allowed = fmt::format("allowed_cidrs lets in {}", fmt::join(names, ", "));
  if (!client) return {"source", true, allowed + "; other clients are reset. Ask with ?client=ADDRESS."};
  const bool in = std::ranges::any_of(limits.allowed_cidrs,
                                      [&](const Cidr& network) { return network.contains(*client); });
  if (in) return {"source", true, fmt::format("{}, and so {}.", allowed, client->to_string())};
  return {"source", false, fmt::format("{}; {} is reset. Add its network.", allowed, client->to_string())};
}

CheckStep tap_step(const Instance& instance, TapState state) {
  switch (state) {
    case TapState::kUp:
      return {"tap", true, fmt::format("{} is up and has a carrier.", instance.tap)};
    case TapState::kNoCarrier:
      return {"tap", false,
              fmt::format("{} has no carrier: no virtual machine holds it open. Start the machine.",
                          instance.tap)};
    case TapState::kMissing:
      break;
  }
  return {"tap", false,
          fmt::format("There is no network device {}. Create the tap, or register the instance with the one "
                      "its machine has.",
                      instance.tap)};
}

/// A socket as the data plane's upstream ones are; connecting a datagram socket asks for the route only.
CheckStep route_step(const Instance& instance) {
  const Endpoint guest(instance.guest_address, 9);
  const Fd socket(::socket(guest.address().is_v6() ? AF_INET6 : AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ::setsockopt(socket.get(), SOL_SOCKET, SO_BINDTODEVICE, instance.tap.data(),
               static_cast<socklen_t>(instance.tap.size()));
  if (::connect(socket.get(), guest.data(), static_cast<socklen_t>(guest.size())) == 0) {
    return {"route", true,
            fmt::format("{} is reached over {}.", instance.guest_address.to_string(), instance.tap)};
  }
  return {
      "route", false,
      fmt::format("There is no route to {} over {} ({}). Give the tap an address in the guest's network, or "
                  "run: ip route add {} dev {}",
                  instance.guest_address.to_string(), instance.tap, std::strerror(errno),
                  instance.guest_address.to_string(), instance.tap)};
}

/// One check. While it waits for the guest it is its reader's alone: nobody is connected to for an answer
/// that nobody takes any more.
class Check final : public BodyStream, public std::enable_shared_from_this<Check> {
 public:
  Check(boost::asio::io_context& context, const CheckSubject& subject)
      : subject_(subject), socket_(context), timer_(context) {}

  void start(milliseconds timeout) {
    add(listener_step(subject_.forward));
    add(source_step(subject_.forward.forward.limits, subject_.client));
    add(tap_step(subject_.instance, subject_.tap_state));
    if (!steps_.back().ok) return finish();
    add(route_step(subject_.instance));
    if (!steps_.back().ok) return finish();
    connect(timeout);
  }

  std::optional<std::string> read() override {
    if (!finished_) return "";
    if (std::exchange(read_, true)) return std::nullopt;
    return text();
  }
  std::string finish_early() override {
    if (!finished_) {
      add({"guest", false,
           "The instance's session ended before its guest had answered: nothing is behind the forward any "
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
    error_code ignored;
    socket_.close(ignored);
    timer_.cancel();
    if (wake_) wake_();
  }

  void connect(milliseconds timeout) {
    const Endpoint guest(subject_.instance.guest_address, subject_.forward.forward.guest_port);
    error_code error;
    socket_.open(guest.protocol(), error);
    if (!error &&
        ::setsockopt(socket_.native_handle(), SOL_SOCKET, SO_BINDTODEVICE, subject_.instance.tap.data(),
                     static_cast<socklen_t>(subject_.instance.tap.size())) != 0) {
      error = error_code(errno, boost::system::system_category());
    }
    if (error) return answered(guest, error.value());
    timer_.expires_after(timeout);
    timer_.async_wait([weak = weak_from_this(), guest](error_code cancelled) {
      const auto self = weak.lock();
      if (self && !cancelled) self->answered(guest, ETIMEDOUT);
    });
    socket_.async_connect(guest, [weak = weak_from_this(), guest](error_code failed) {
      const auto self = weak.lock();
      if (self && failed != boost::asio::error::operation_aborted) self->answered(guest, failed.value());
    });
  }

  void answered(const Endpoint& guest, int error) {
    if (finished_) return;
    add(guest_step(guest, error, std::chrono::duration_cast<milliseconds>(steady_clock::now() - began_)));
    finish();
  }

  const CheckSubject subject_;
  const steady_clock::time_point began_ = steady_clock::now();
  boost::asio::ip::tcp::socket socket_;
  boost::asio::steady_timer timer_;
  std::vector<CheckStep> steps_;
  std::function<void()> wake_;
  bool finished_ = false;
  bool read_ = false;
};

}  // namespace

CheckStep guest_step(const Endpoint& guest, int error, milliseconds after) {
  const std::string where = to_string(guest);
  switch (error) {
    case 0:
      return {"guest", true,
              fmt::format("A service accepts connections on {} ({} ms).", where, after.count())};
    case ECONNREFUSED:
      return {
          "guest", false,
          fmt::format("The guest answers, but nothing listens on {}. Start the service; if it runs, is it "
                      "bound to 0.0.0.0 (or ::) and not to 127.0.0.1?",
                      where)};
    case ETIMEDOUT:
      return {
          "guest", false,
          fmt::format("The guest does not answer on {} within {} ms. Is it still booting, paused, or does a "
                      "firewall in it drop packets?",
                      where, after.count())};
    case EHOSTUNREACH:
      return {"guest", false,
              fmt::format("Nobody on the tap has the address {}. Compare guest_address with the guest's own "
                          "configuration.",
                          guest.address().to_string())};
    default:
      return {"guest", false, fmt::format("The node cannot connect to {}: {}.", where, std::strerror(error))};
  }
}

std::shared_ptr<BodyStream> check_forward(boost::asio::io_context& context, const CheckSubject& subject,
                                          milliseconds timeout) {
  auto check = std::make_shared<Check>(context, subject);
  check->start(timeout);
  return check;
}

}  // namespace portway
