#include "api/http/answer_budget.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

namespace portway {
namespace {

const AnswerBudget::Payer kAlice = {.name = "tenant:alice", .has_key = true};

/// What `payer` gets, in answers of one byte, until it is refused.
std::size_t take_all(AnswerBudget& budget, const AnswerBudget::Payer& payer,
                     std::vector<AnswerBudget::Share>& shares) {
  const std::size_t before = shares.size();
  while (auto share = budget.take(payer, 1)) shares.push_back(std::move(*share));
  return shares.size() - before;
}

TEST(AnswerBudget, LeavesOthersAsMuchAsAnybodyHas) {
  AnswerBudget budget(600);
  std::vector<AnswerBudget::Share> shares;
  EXPECT_EQ(take_all(budget, kAlice, shares), 300U);
  EXPECT_FALSE(budget.take(kAlice, 1));
  std::vector<AnswerBudget::Share> bobs;
  EXPECT_EQ(take_all(budget, {.name = "tenant:bob", .has_key = true}, bobs), 150U);
  EXPECT_TRUE(budget.take({.name = "admin:admin", .has_key = true}, 70));
  bobs.clear();
  shares.clear();
  EXPECT_EQ(budget.stats().bytes, 0U);
  EXPECT_TRUE(budget.take(kAlice, 300)) << "all is given back";
  EXPECT_FALSE(budget.take(kAlice, 301));
}

TEST(AnswerBudget, CallersWithoutAKeyHaveHalfHoweverManyTheyAre) {
  AnswerBudget budget(600);
  std::vector<AnswerBudget::Share> shares;
  std::size_t taken = 0;
  for (int i = 0; i < 100; ++i) taken += take_all(budget, {.name = std::to_string(i)}, shares);
  EXPECT_EQ(taken, 300U);
  EXPECT_TRUE(budget.take(kAlice, 150));
}

TEST(AnswerBudget, WhatMustBeSentCountsAndIsNotRefused) {
  AnswerBudget budget(600);
  const AnswerBudget::Share sent = budget.take_anyway(kAlice, 700);
  EXPECT_EQ(budget.stats().bytes, 700U);
  EXPECT_EQ(budget.stats().refused, 0U);
  EXPECT_FALSE(budget.take({.name = "tenant:bob", .has_key = true}, 1));
  EXPECT_EQ(budget.stats().refused, 1U);
}

TEST(AnswerBudget, KnowsOnceThatAPeakIsOver) {
  AnswerBudget budget(800);
  EXPECT_FALSE(budget.is_over_a_peak());
  {
    const auto share = budget.take(kAlice, 400);
    EXPECT_FALSE(budget.is_over_a_peak());
  }
  EXPECT_TRUE(budget.is_over_a_peak());
  EXPECT_FALSE(budget.is_over_a_peak());
}

TEST(AnswerBudget, AnswersOfNoBytesTakeNothingHoweverManyEndTogether) {
  AnswerBudget budget(600);
  std::vector<AnswerBudget::Share> shares;
  for (int i = 0; i < 2; ++i) shares.push_back(budget.take_anyway(kAlice, 0));
  shares.clear();
  EXPECT_EQ(budget.stats().bytes, 0U);
}

TEST(AnswerBudget, MayGoBeforeItsShares) {
  auto budget = std::make_unique<AnswerBudget>();
  const auto share = budget->take(kAlice, 10);
  budget.reset();
}

}  // namespace
}  // namespace portway
