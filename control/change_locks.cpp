#include "control/change_locks.h"

#include <deque>
#include <functional>
#include <map>

#include "control/resume_later.h"

namespace portway {

struct ChangeLocks::State {
  struct Waiting {
    bool alone = false;
    Resume<Held> resume;
  };
  struct Lock {
    std::size_t holders = 0;
    bool alone = false;  // the one holder has it alone
    std::deque<Waiting> waiting;

    bool admits(bool alone_wanted) const { return holders == 0 || (!alone && !alone_wanted); }
  };

  std::map<std::string, Lock, std::less<>> locks;
};

ChangeLocks::ChangeLocks() : state_(std::make_shared<State>()) {}

/// Those who wait get it next: whoever asks later does not overtake them.
ChangeLocks::Held::~Held() {
  if (state_ == nullptr) return;
  const auto found = state_->locks.find(name_);
  State::Lock& lock = found->second;
  --lock.holders;
  while (!lock.waiting.empty() && lock.admits(lock.waiting.front().alone)) {
    const State::Waiting next = std::move(lock.waiting.front());
    lock.waiting.pop_front();
    ++lock.holders;
    lock.alone = next.alone;
    next.resume(Held(state_, name_, next.alone));
  }
  if (lock.holders == 0) state_->locks.erase(found);
}

boost::asio::awaitable<ChangeLocks::Held> ChangeLocks::share(std::string name) {
  return lock(std::move(name), false);
}

boost::asio::awaitable<ChangeLocks::Held> ChangeLocks::own(std::string name) {
  return lock(std::move(name), true);
}

boost::asio::awaitable<ChangeLocks::Held> ChangeLocks::lock(std::string name, bool alone) {
  State::Lock& lock = state_->locks[name];
  if (lock.waiting.empty() && lock.admits(alone)) {
    ++lock.holders;
    lock.alone = alone;
    co_return Held(state_, std::move(name), alone);
  }
  const std::function<void(Resume<Held>)> wait = [&lock, alone](Resume<Held> resume) {
    lock.waiting.push_back({alone, std::move(resume)});
  };
  co_return co_await resume_later<Held>(wait);
}

std::size_t ChangeLocks::size() const {
  return state_->locks.size();
}

}  // namespace portway
