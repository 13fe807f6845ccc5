// portway apply: forwards as a file says.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "tests/client/fake_server.h"

namespace portway::test {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;
using testing::StartsWith;

constexpr const char* kTwo = R"({"instances": {
  "vm-1": {"port_forwards": [{"guest_port": 3000, "label": "web"}]},
  "vm/2": {"port_forwards": []}}})";

constexpr const char* kAnswer =
    R"({"dry_run": false, "created": [{}], "updated": [], "unchanged": [{}, {}], "removed": [], "hostname": "h"})";

class ApplyTest : public testing::Test {
 protected:
  ClientRun apply(const std::string& text, const FakeServer& server,
                  const std::vector<std::string>& more = {}) {
    std::vector<std::string> words = {"apply", "--server", server.url(), "-f",
                                      directory_.write("wanted.json", text)};
    words.insert(words.end(), more.begin(), more.end());
    return run_portway(words);
  }

  TemporaryDirectory directory_;
};

TEST_F(ApplyTest, SetsTheForwardsOfEachInstance) {
  const FakeServer server("tcp", [](const std::string&) { return http_answer(200, kAnswer); });
  const ClientRun run = apply(kTwo, server);
  EXPECT_EQ(run.exit, 0) << run.err;
  EXPECT_EQ(run.out,
            "vm-1: 1 created, 0 updated, 2 unchanged, 0 removed\n"
            "vm/2: 1 created, 0 updated, 2 unchanged, 0 removed\n");
  ASSERT_THAT(server.requests(), SizeIs(2));
  EXPECT_THAT(server.requests()[0],
              AllOf(StartsWith("PUT /instances/vm-1/port-forwards HTTP"),
                    HasSubstr(R"({"port_forwards":[{"guest_port":3000,"label":"web"}]})")));
  EXPECT_THAT(server.requests()[1], StartsWith("PUT /instances/vm%2F2/port-forwards HTTP"));
}

TEST_F(ApplyTest, ADryRunAsksForOne) {
  const FakeServer server("tcp", [](const std::string&) { return http_answer(200, kAnswer); });
  EXPECT_EQ(apply(kTwo, server, {"--dry-run", "-o", "json"}).exit, 0);
  EXPECT_THAT(server.requests()[0], StartsWith("PUT /instances/vm-1/port-forwards?dry_run=true HTTP"));
}

TEST_F(ApplyTest, AnInstanceThatIsRefusedDoesNotKeepTheOthers) {
  const FakeServer server("tcp", [](const std::string& request) {
    if (request.find("vm-1") == std::string::npos) return http_answer(200, kAnswer);
    return problem_answer(
        409,
        R"({"title": "Conflict", "code": "instance_not_running", "detail": "Instance vm-1 is stopped."})");
  });
  const ClientRun run = apply(kTwo, server);
  EXPECT_EQ(run.exit, 1);
  EXPECT_THAT(run.out, StartsWith("vm/2: 1 created"));
  EXPECT_THAT(run.err, AllOf(HasSubstr("portway: vm-1: Conflict: Instance vm-1 is stopped. (code: "
                                       "instance_not_running, status: 409)\n"),
                             HasSubstr("1 of 2 instances")));
}

TEST_F(ApplyTest, AFileThatDoesNotFitSendsNothing) {
  const FakeServer server("tcp", [](const std::string&) { return http_answer(200, kAnswer); });
  for (const char* text :
       {"", "[]", "{", R"({"instances": []})", R"({"instances": {}, "more": 1})",
        R"({"instances": {"vm-1": {"port_forwards": {}}}})", R"({"instances": {"vm-1": {}}})",
        R"({"instances": {"vm-1": {"port_forwards": [], "owner": "x"}}})"}) {
    const ClientRun run = apply(text, server);
    EXPECT_EQ(run.exit, 2) << text;
    EXPECT_THAT(run.err, HasSubstr("wanted.json")) << text;
  }
  EXPECT_EQ(run_portway({"apply", "--server", server.url(), "-f", "/nonexistent"}).exit, 2);
  EXPECT_EQ(run_portway({"apply", "--server", server.url()}).exit, 2);
  EXPECT_THAT(server.requests(), IsEmpty());
}

}  // namespace
}  // namespace portway::test
