// Which of the clients that did not get through are reported, so that a flood of them crowds out neither the
// other events nor other instances' clients.
//
// Control thread.
#pragma once

#include <chrono>
#include <string>
#include <unordered_map>

#include "proxy/close_record.h"

namespace portway {

class RefusedClients {
 public:
  static constexpr std::chrono::milliseconds kPeriod{100};
  static constexpr int kEventsOfInstance = 2;  // within kPeriod
  static constexpr int kEventsMax = 50;        // within kPeriod

  /// Whether there is an event for one more client of this instance, which is then counted.
  bool take_event(const std::string& instance_id);

  /// Logs what only the operator can repair, once a minute.
  void explain(const CloseRecord& record);

 private:
  std::chrono::steady_clock::time_point explain_again_{};
  std::chrono::steady_clock::time_point period_end_{};
  int events_ = 0;                           // in this period
  std::unordered_map<std::string, int> of_;  // the same by instance
};

}  // namespace portway
