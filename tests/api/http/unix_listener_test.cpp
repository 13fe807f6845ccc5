// The server on a Unix socket: its owner, the identity of callers, and what happens to its file.
#include "api/http/unix_listener.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "base/forward.h"
#include "tests/api/http/running_server.h"

namespace portway {
namespace {

using namespace test;
using ::testing::AllOf;
using ::testing::HasSubstr;

class UnixSocket : public testing::Test {
 protected:
  UnixSocket() { std::filesystem::create_directory(directory_); }
  ~UnixSocket() override { std::filesystem::remove_all(directory_); }

  const std::string directory_ = "/tmp/portway-unix-" + to_string(make_uuid());
  const UnixPath path_{directory_ + "/api.sock"};
};

TEST_F(UnixSocket, NamesTheCallingProcessAndUserToTheHandler) {
  std::optional<Request> seen;
  Running server({.listen = path_}, [&seen](const Request& request) {
    seen = request;
    return echo(request);
  });
  Client client(path_);
  EXPECT_EQ(client.call(kGet).body, "GET /ping ");
  ASSERT_TRUE(seen->peer_credentials);
  EXPECT_EQ(seen->peer_credentials->pid, ::getpid());
  EXPECT_EQ(seen->peer_credentials->uid, ::geteuid());
  EXPECT_EQ(seen->peer_credentials->gid, ::getegid());
  EXPECT_TRUE(seen->peer.is_unspecified());
}

TEST_F(UnixSocket, IsForTheOwnerAndTheGroupWhateverTheUmask) {
  for (const mode_t mask : {0000U, 0077U}) {
    const mode_t before = ::umask(mask);
    const auto listener = UnixListener::open(path_);
    ::umask(before);
    ASSERT_TRUE(listener);
    EXPECT_EQ(std::filesystem::status(path_.path).permissions(), std::filesystem::perms(0660));
  }
}

TEST_F(UnixSocket, HasNoGuestsToRefuse) {
  Running server({.listen = path_, .refuses = [](const ClientOrigin&) { return true; }});
  EXPECT_EQ(Client(path_).call(kGet).status, 200);
}

TEST_F(UnixSocket, OfADeadDaemonIsReplaced) {
  {
    auto dead = UnixListener::open(path_).value();
    const Fd socket = dead.take_socket();
    std::filesystem::rename(path_.path, path_.path + ".kept");
  }
  std::filesystem::rename(path_.path + ".kept", path_.path);
  Running server({.listen = path_});
  EXPECT_EQ(Client(path_).call(kGet).status, 200);
}

TEST_F(UnixSocket, OfALiveDaemonIsLeftAlone) {
  Running server({.listen = path_});
  const auto second = UnixListener::open(path_);
  ASSERT_FALSE(second);
  EXPECT_EQ(second.error().code, ErrorCode::kHostPortTaken);
  EXPECT_THAT(second.error().detail, AllOf(HasSubstr(path_.path), HasSubstr("another path")));
  EXPECT_EQ(Client(path_).call(kGet).status, 200);
}

TEST_F(UnixSocket, IsNotMadeInPlaceOfAnythingElse) {
  std::ofstream(path_.path) << "mine";
  const auto file = UnixListener::open(path_);
  ASSERT_FALSE(file);
  EXPECT_EQ(file.error().code, ErrorCode::kInvalidConfig);
  EXPECT_THAT(file.error().detail, HasSubstr("choose another path"));
  EXPECT_EQ(std::filesystem::file_size(path_.path), 4U);
  const auto nowhere = UnixListener::open({directory_ + "/none/api.sock"});
  ASSERT_FALSE(nowhere);
  EXPECT_EQ(nowhere.error().code, ErrorCode::kInvalidConfig);
  EXPECT_THAT(nowhere.error().detail, HasSubstr("make its directory"));
}

TEST_F(UnixSocket, IsGoneWhenTheServerStops) {
  Running server({.listen = path_});
  server.stop();
  EXPECT_FALSE(std::filesystem::exists(path_.path));
}

TEST_F(UnixSocket, OfAnotherIsNotRemovedByTheOneBefore) {
  Running first({.listen = path_});
  std::filesystem::remove(path_.path);
  Running second({.listen = path_});
  first.stop();
  EXPECT_EQ(Client(path_).call(kGet).status, 200);
}

}  // namespace
}  // namespace portway
