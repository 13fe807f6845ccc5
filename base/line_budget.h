// How many lines of a kind a log takes in a second, in all and of one principal: whoever repeats what is
// logged must not fill it, nor hide others' lines.
//
// Belongs to one thread.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>

namespace portway {

class LineBudget {
 public:
  using Clock = std::chrono::steady_clock;

  LineBudget(int lines_per_second, int lines_of_one_per_second)
      : lines_max_(lines_per_second), lines_of_one_max_(lines_of_one_per_second) {}

  /// Whether a line may be written now. A line that may not is counted.
  bool take(std::string_view whose, Clock::time_point now = Clock::now()) {
    if (now - second_began_ >= std::chrono::seconds(1)) {
      second_began_ = now;
      lines_ = 0;
      lines_of_.clear();
    }
    auto of_one = lines_of_.find(whose);
    if (lines_ == lines_max_ || (of_one != lines_of_.end() && of_one->second == lines_of_one_max_)) {
      ++left_out_;
      return false;
    }
    if (of_one == lines_of_.end()) of_one = lines_of_.emplace(whose, 0).first;
    ++of_one->second;
    ++lines_;
    return true;
  }

  /// How many have been left out since the call before.
  std::uint64_t take_left_out() { return std::exchange(left_out_, 0); }

 private:
  const int lines_max_;
  const int lines_of_one_max_;
  Clock::time_point second_began_{};
  int lines_ = 0;                                     // in this second
  std::map<std::string, int, std::less<>> lines_of_;  // likewise; at most lines_max_ entries
  std::uint64_t left_out_ = 0;
};

}  // namespace portway
