#include "control/session_remains.h"

#include <utility>

#include "network/orphaned_sockets.h"

namespace portway {
namespace {

using std::chrono::steady_clock;

// A worker resets a session's connections within a turn or two.
constexpr std::chrono::milliseconds kLookEvery{2};
// So long, at most: a worker that hangs must not keep the namespace.
constexpr std::chrono::seconds kWaitMax{1};

}  // namespace

void SessionRemains::add(const Instance& stopped, NetworkNamespace::Ptr netns, int link) {
  remains_.push_back(
      {stopped.session_id, guest_addresses(stopped), std::move(netns), link, steady_clock::now()});
  look_soon();
}

void SessionRemains::look_soon() {
  timer_.expires_after(kLookEvery);
  timer_.async_wait([this](boost::system::error_code cancelled) {
    if (!cancelled) look();
  });
}

void SessionRemains::look() {
  const auto now = steady_clock::now();
  std::erase_if(remains_, [&](const Remains& each) {
    if (!dataplane_.session_ended(each.session_id) && now - each.since < kWaitMax) return false;
    on_over_(each.session_id);
    end_orphaned_sockets(*each.netns, each.link, each.guests);
    if (each.link != 0) drop_unresolved_packets(*each.netns, each.link, each.guests);
    return true;
  });
  if (!remains_.empty()) look_soon();
}

}  // namespace portway
