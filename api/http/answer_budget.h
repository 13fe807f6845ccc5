// The memory of answers on their way: what clients have asked for and have not read.
//
// A client that asks for much and reads nothing keeps its answer in memory until its time is over. So all
// answers of all servers together have a budget, and nobody may have more of it than is left for everybody
// else: half, who is alone; a third each, where two take what they can. Callers without a key, who can have
// many addresses, have half of it together. What does not fit is refused, before it is sent.
//
// Belongs to the control thread; shares may outlive this object.
#pragma once

#include <cstddef>
#include <memory>
#include <optional>
#include <string>

#include "api/http/server_stats.h"

namespace portway {

class AnswerBudget {
  struct State;

 public:
  static constexpr std::size_t kBytesMax = std::size_t{64} << 20;

  /// Whose answers these are.
  struct Payer {
    std::string name;
    bool has_key = false;
  };

  /// Taken until it is destroyed.
  class Share {
   public:
    Share(Share&& other) noexcept = default;
    Share& operator=(Share&&) = delete;
    ~Share();

   private:
    friend class AnswerBudget;
    Share(std::shared_ptr<State> state, Payer payer, std::size_t bytes);

    std::shared_ptr<State> state_;
    Payer payer_;
    std::size_t bytes_;
  };

  explicit AnswerBudget(std::size_t bytes_max = kBytesMax);
  ~AnswerBudget();
  AnswerBudget(const AnswerBudget&) = delete;
  AnswerBudget& operator=(const AnswerBudget&) = delete;

  /// Nothing, and it is counted, where they do not fit.
  std::optional<Share> take(const Payer& payer, std::size_t bytes);
  /// For an answer that must be sent: it counts, and is not refused.
  Share take_anyway(const Payer& payer, std::size_t bytes);

  AnswerStats stats() const;

  /// Much was taken and is free again; true once for each time.
  bool is_over_a_peak();

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace portway
