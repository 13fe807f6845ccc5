// The keeper: a process that shares the daemon's table of descriptors (clone(2), CLONE_FILES) and does
// nothing while the daemon lives. If the daemon dies, of SIGKILL or otherwise, its sockets and pipes stay
// open: clients and guests wait, as TCP lets them. The keeper hands everything to the daemon that is started
// next (handover/predecessor.h). If none comes in time, or on SIGTERM, it resets all connections and ends.
//
// Sharing the table costs the daemon nothing for a connection. Two processes never act for a connection at
// once: a successor takes over with one store to the control block, which both map.
#pragma once

#include <sys/types.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/fd.h"
#include "handover/descriptors.h"

namespace portway {

/// In memory that the daemon, its keeper and its successor share.
struct KeeperControl {
  static constexpr std::size_t kPathMax = 107;

  std::atomic<std::int32_t> memory{-1};       // the descriptor of what to hand over; negative: nothing yet
  std::atomic<std::int32_t> predecessor{-1};  // that of the predecessor's control block; negative: none
  std::atomic<std::uint32_t> taken{0};        // 1: the successor acts for the connections now
  std::atomic<std::int64_t> timeout_ms{0};    // how long to wait for a successor
  std::array<char, kPathMax + 1> path{};      // where to wait for it; ends with a zero
  std::atomic<std::int32_t> successor{-1};    // of one that asks the process itself: its connection
};

/// Maps a control block; null if it is none.
class MappedControl {
 public:
  explicit MappedControl(const Fd& memory);
  ~MappedControl();
  MappedControl(const MappedControl&) = delete;
  MappedControl& operator=(const MappedControl&) = delete;

  explicit operator bool() const { return control_ != nullptr; }
  KeeperControl& operator*() const { return *control_; }
  KeeperControl* operator->() const { return control_; }

 private:
  KeeperControl* control_ = nullptr;
};

class Keeper {
 public:
  /// Of its process, as in /proc/PID/comm.
  static constexpr std::string_view kProcessName = "portway-keeper";

  /// Call it before the process starts a thread, or opens what the keeper must not have. Null, with an errno
  /// in `error`, if the kernel refuses. `prepare` runs in the keeper's process first.
  static std::unique_ptr<Keeper> start(int& error, const std::function<void()>& prepare = {});
  /// Ends the keeper: from now on everything ends with this process.
  ~Keeper();
  Keeper(const Keeper&) = delete;
  Keeper& operator=(const Keeper&) = delete;

  /// From now on the keeper keeps what the process has. `memory` says what the descriptors are for, and
  /// `predecessor` is the control block of the process from which they come, or negative: until that
  /// one's `taken` is set, it is still the predecessor's keeper that has them. False if the path is too long.
  bool keep(int memory, int predecessor, const std::string& path, std::chrono::milliseconds timeout);

  /// False once its process has ended. Call it now and then: nobody else reaps it.
  bool alive();

  /// Before hand_over(), which it makes faster: everything may still move.
  void prepare();
  /// For a successor that asks this process itself: sends what the keeper would, and waits until it acts for
  /// the connections and needs this process no more. Nothing may move meanwhile. An errno if it does not.
  int hand_over(int successor, std::chrono::milliseconds patience);
  /// Whether the successor acts for the connections. Once it has ended without that, it never will.
  bool handed_over() const { return control_->taken.load() != 0; }

 private:
  Keeper(Fd control_memory, pid_t process);

  Fd control_memory_;
  MappedControl control_;
  pid_t process_;  // 0: it has ended
  std::vector<Descriptor> known_;
};

}  // namespace portway
