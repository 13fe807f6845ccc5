// Bounds the memory of answers that clients have asked for and not read yet.
//
// A client that asks for much and reads nothing keeps its answer in memory until its timeout. So all answers
// of all servers share a budget, and nobody may hold more of it than is left for all others: one caller alone
// gets half, two greedy ones get a third each. Callers without a key, who can have many addresses, get half
// of it together. What does not fit is refused before it is sent.
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

  /// Who the answers are for.
  struct Payer {
    std::string name;
    bool has_key = false;
  };

  /// Counts against the budget until it is destroyed.
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

  /// Nothing if they do not fit; the refusal is counted.
  std::optional<Share> take(const Payer& payer, std::size_t bytes);
  /// For an answer that must be sent: it counts against the budget, and is not refused.
  Share take_anyway(const Payer& payer, std::size_t bytes);

  AnswerStats stats() const;

  /// True once after a large share of the budget was taken and has been freed again.
  bool is_over_a_peak();

 private:
  const std::shared_ptr<State> state_;
};

}  // namespace portway
