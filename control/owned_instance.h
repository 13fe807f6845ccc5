// What a change of an instance has to itself. Control thread.
#pragma once

#include <string>
#include <utility>

#include "control/change_locks.h"
#include "control/unsaved_sessions.h"

namespace portway {

/// For a change of the instance itself: others of the instance and of its forwards come before it or after
/// it. What memory knows of its session is not saved meanwhile, since it could arrive on disk after the
/// change.
class OwnedInstance {
 public:
  OwnedInstance(UnsavedSessions& unsaved, std::string id, ChangeLocks::Held change,
                ChangeLocks::Held instance)
      : unsaved_(unsaved), id_(std::move(id)), change_(std::move(change)), instance_(std::move(instance)) {
    unsaved_.hold(id_);
  }
  ~OwnedInstance() { unsaved_.release(id_); }
  OwnedInstance(const OwnedInstance&) = delete;
  OwnedInstance& operator=(const OwnedInstance&) = delete;

 private:
  UnsavedSessions& unsaved_;
  const std::string id_;
  const ChangeLocks::Held change_;
  const ChangeLocks::Held instance_;
};

}  // namespace portway
