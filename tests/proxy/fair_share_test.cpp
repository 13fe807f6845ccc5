// The arithmetic of shares: who gets a connection when they run short.
#include "proxy/fair_share.h"

#include <gtest/gtest.h>

namespace portway {
namespace {

using std::chrono::hours;
using std::chrono::seconds;
using Verdict = FairShare::Verdict;

/// A node with 1,000 connections, half of which one instance may have, and an instance with two forwards.
class FairShares : public testing::Test {
 protected:
  FairShares() {
    share_.set_sessions(5);
    session_->forwards = 2;
  }

  void have(std::uint32_t of_instance, std::uint32_t of_forward) {
    session_->connections = of_instance;
    while (forward_.connections_now() < of_forward) forward_.counters[0].connections_active.add();
  }
  Verdict ask(std::uint64_t total, bool has_most = false) {
    return share_.ask(total, forward_, [&] { return has_most; });
  }

  FairShare share_{1000, 50};
  ServedSessionPtr session_ = std::make_shared<ServedSession>(Uuid{}, kAnyDevice);
  ServedForward forward_{ForwardRoute{}, 1, 0, session_};
};

TEST_F(FairShares, NobodyIsHeldBackWhileThereIsRoom) {
  have(249, 124);
  EXPECT_EQ(ask(499, true), Verdict::kAdmit);
}

TEST_F(FairShares, WhereHalfIsTakenAnInstanceGetsItsPartOfTheRest) {
  have(99, 99);
  EXPECT_EQ(ask(500), Verdict::kMakeRoom);
  EXPECT_EQ(ask(999), Verdict::kMakeRoom);
  have(100, 100);
  EXPECT_EQ(ask(499), Verdict::kAdmit);
  EXPECT_EQ(ask(500), Verdict::kInstanceShare) << "a fifth of the 500 that are kept";
}

TEST_F(FairShares, AForwardDoesNotTakeWhatItsInstanceMayHave) {
  have(250, 124);
  EXPECT_EQ(ask(400), Verdict::kAdmit) << "half of the 250 that are kept";
  have(250, 125);
  EXPECT_EQ(ask(400), Verdict::kForwardShare);
  session_->forwards = 1;
  EXPECT_EQ(ask(400), Verdict::kAdmit) << "there is no other to be kept for";
}

TEST_F(FairShares, ASourceAddressDoesNotTakeWhatItsForwardMayHave) {
  session_->forwards = 1;
  have(250, 250);
  EXPECT_EQ(ask(400, true), Verdict::kSourceShare);
  EXPECT_EQ(ask(400, false), Verdict::kAdmit);
}

TEST_F(FairShares, ASourceAddressLeavesSomeOfAForwardThatHasSiblings) {
  have(125, 125);
  EXPECT_EQ(ask(200, true), Verdict::kSourceShare) << "half of the 250 that the forward may have";
  EXPECT_EQ(ask(200, false), Verdict::kAdmit);
}

TEST_F(FairShares, EverybodyGetsAtLeastOne) {
  share_.set_sessions(100'000);
  have(0, 0);
  EXPECT_EQ(ask(1000), Verdict::kMakeRoom);
  have(1, 1);
  EXPECT_EQ(ask(1000), Verdict::kInstanceShare);
}

TEST_F(FairShares, ListenersTakeTheDescriptorsOfConnections) {
  share_.set_capacity(100);
  have(20, 20);
  EXPECT_EQ(ask(50), Verdict::kInstanceShare);
}

TEST_F(FairShares, HalfClosedConnectionsGetLessTimeTheMoreAreInUse) {
  EXPECT_EQ(share_.half_close_limit(125, hours(1)), hours(1));
  EXPECT_EQ(share_.half_close_limit(500, hours(1)), seconds(120));
  EXPECT_EQ(share_.half_close_limit(1000, hours(1)), seconds(120));
  EXPECT_LT(share_.half_close_limit(300, hours(1)), share_.half_close_limit(200, hours(1)));
  EXPECT_EQ(share_.half_close_limit(1000, seconds(60)), seconds(60)) << "as it is configured";
  EXPECT_EQ(share_.half_close_limit(500, seconds(0)), seconds(120)) << "also where it is never";
  EXPECT_EQ(FairShare(1000, 100).half_close_limit(1000, hours(1)), hours(1));
}

TEST_F(FairShares, PipesBeyondThoseForAllAreKeptForInstancesThatHaveFew) {
  EXPECT_EQ(share_.pipes_for_all(1000), 500U);
  EXPECT_EQ(share_.pipes_kept_for_instance(1000), 100U) << "a fifth of the other 500";
  EXPECT_EQ(share_.pipes_kept_for_instance(1), 1U) << "everybody gets one if there is one";
  EXPECT_EQ(FairShare(1000, 100).pipes_for_all(1000), 1000U) << "nobody is limited";
}

}  // namespace
}  // namespace portway
