#include "api/http/answer_budget.h"

#include <algorithm>
#include <unordered_map>
#include <utility>

namespace portway {

struct AnswerBudget::State {
  const std::size_t bytes_max;
  std::size_t taken = 0;
  std::size_t taken_without_key = 0;                         // of those
  std::size_t peak = 0;                                      // since is_over_a_peak() was true
  std::unordered_map<std::string, std::size_t> payers = {};  // those that have something
  std::uint64_t refused = 0;

  bool has_room(const Payer& payer, std::size_t bytes) const {
    const auto known = payers.find(payer.name);
    const std::size_t had = known == payers.end() ? 0 : known->second;
    if (taken + bytes > bytes_max || had + bytes > bytes_max - taken - bytes) return false;
    return payer.has_key || taken_without_key + bytes <= bytes_max / 2;
  }
};

AnswerBudget::Share::Share(std::shared_ptr<State> state, Payer payer, std::size_t bytes)
    : state_(std::move(state)), payer_(std::move(payer)), bytes_(bytes) {
  if (bytes_ == 0) return;
  state_->taken += bytes_;
  if (!payer_.has_key) state_->taken_without_key += bytes_;
  state_->payers[payer_.name] += bytes_;
  state_->peak = std::max(state_->peak, state_->taken);
}

AnswerBudget::Share::~Share() {
  if (state_ == nullptr || bytes_ == 0) return;  // moved from, or nothing
  state_->taken -= bytes_;
  if (!payer_.has_key) state_->taken_without_key -= bytes_;
  const auto payer = state_->payers.find(payer_.name);
  payer->second -= bytes_;
  if (payer->second == 0) state_->payers.erase(payer);
}

AnswerBudget::AnswerBudget(std::size_t bytes_max)
    : state_(std::make_shared<State>(State{.bytes_max = bytes_max})) {}

AnswerBudget::~AnswerBudget() = default;

std::optional<AnswerBudget::Share> AnswerBudget::take(const Payer& payer, std::size_t bytes) {
  if (state_->has_room(payer, bytes)) return take_anyway(payer, bytes);
  ++state_->refused;
  return std::nullopt;
}

AnswerBudget::Share AnswerBudget::take_anyway(const Payer& payer, std::size_t bytes) {
  return {state_, payer, bytes};
}

AnswerStats AnswerBudget::stats() const {
  return {.bytes = state_->taken, .bytes_max = state_->bytes_max, .refused = state_->refused};
}

bool AnswerBudget::is_over_a_peak() {
  const bool over = state_->peak > state_->bytes_max / 8 && state_->taken < state_->peak / 4;
  if (over) state_->peak = state_->taken;
  return over;
}

}  // namespace portway
