// The store against real files: what it acknowledged must be there after a restart and after kill -9, what it
// refused must not.

#include "control/store.h"

#include <SQLiteCpp/Database.h>
#include <SQLiteCpp/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/fsuid.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <vector>

#include "base/fd.h"
#include "tests/support/requirements.h"
#include "tests/support/run.h"
#include "tests/support/temporary_directory.h"

namespace portway {
namespace {

namespace fs = std::filesystem;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

// Turns a store into one left by a Portway with six of the scripts.
constexpr const char* kBackToVersion6 = R"sql(
  DROP TABLE instance_usage;
  DROP TABLE forward_usage;
  ALTER TABLE instances DROP COLUMN metadata;
  ALTER TABLE forwards DROP COLUMN metadata;
  ALTER TABLE forwards DROP COLUMN enabled;
  ALTER TABLE forwards DROP COLUMN expires_at;
  ALTER TABLE instances DROP COLUMN target_kind;
  ALTER TABLE instances DROP COLUMN target_socket;
  ALTER TABLE instances DROP COLUMN target_port;
  ALTER TABLE forwards DROP COLUMN target_kind;
  ALTER TABLE forwards DROP COLUMN target_socket;
  ALTER TABLE forwards DROP COLUMN target_port;
  DROP TABLE node;
  DROP INDEX idempotent_answers_by_payer;
  ALTER TABLE idempotent_answers DROP COLUMN payer;
  ALTER TABLE idempotent_answers DROP COLUMN etag;
  DROP INDEX idempotent_answers_by_age;
  ALTER TABLE idempotent_answers DROP COLUMN running_ms;
  CREATE INDEX idempotent_answers_by_scope ON idempotent_answers (scope, created_at);
  CREATE INDEX idempotent_answers_by_age ON idempotent_answers (created_at);
  DROP TABLE running_time;
  ALTER TABLE instances DROP COLUMN device;
  ALTER TABLE instances DROP COLUMN netns;
  ALTER TABLE instances DROP COLUMN netns_identity;
  ALTER TABLE instances DROP COLUMN tap_netns;
  ALTER TABLE instances DROP COLUMN tap_netns_identity;
  ALTER TABLE api_keys DROP COLUMN description;
  ALTER TABLE api_keys DROP COLUMN scope;
  ALTER TABLE api_keys DROP COLUMN instance_id;
  ALTER TABLE api_keys DROP COLUMN expires_at;
  ALTER TABLE api_keys DROP COLUMN last_used_at;
  ALTER TABLE api_keys DROP COLUMN old_secret_sha256;
  ALTER TABLE api_keys DROP COLUMN old_secret_until;
  PRAGMA user_version = 6;
)sql";

// The same, from there to one with four.
constexpr const char* kBackToVersion4 = R"sql(
  ALTER TABLE forwards DROP COLUMN admin_limits;
  ALTER TABLE instances DROP COLUMN tap_carrier_downs;
  ALTER TABLE instances DROP COLUMN idle_tap_index;
  ALTER TABLE instances DROP COLUMN idle_tap_carrier_downs;
  ALTER TABLE instances DROP COLUMN guest_address_v6;
  PRAGMA user_version = 4;
)sql";

Instance make_instance(const std::string& id) {
  Instance instance;
  instance.id = id;
  instance.guest_address = *parse_address("198.18.0.2");
  instance.tap = "tap0";
  instance.owner = "acme";
  instance.session_id = make_uuid();
  instance.created_at = now();
  return instance;
}

Forward make_forward(const Instance& instance, std::uint16_t host_port) {
  Forward forward;
  forward.id = make_uuid();
  forward.instance_id = instance.id;
  forward.session_id = instance.session_id;
  forward.guest_port = 3000;
  forward.host_port = host_port;
  forward.created_at = now();
  return forward;
}

ApiKey make_key(Role role, std::uint8_t first_byte) {
  ApiKey key;
  key.id = make_uuid();
  key.role = role;
  key.owner = "acme";
  key.secret_sha256 = {first_byte, 0, 0xff};
  key.created_at = now();
  return key;
}

void expect_equal(const Instance& a, const Instance& b) {
  EXPECT_EQ(a.id, b.id);
  EXPECT_EQ(guest_addresses(a), guest_addresses(b));
  EXPECT_EQ(a.tap, b.tap);
  EXPECT_EQ(a.owner, b.owner);
  EXPECT_EQ(a.profile, b.profile);
  EXPECT_EQ(a.vmm_pid, b.vmm_pid);
  EXPECT_EQ(a.target, b.target);
  EXPECT_EQ(a.session_id, b.session_id);
  EXPECT_EQ(a.state, b.state);
  EXPECT_EQ(a.created_at, b.created_at);
  EXPECT_EQ(a.ended, b.ended);
  EXPECT_EQ(a.tap_index, b.tap_index);
  EXPECT_EQ(a.tap_carrier_downs, b.tap_carrier_downs);
  EXPECT_EQ(a.idle_tap, b.idle_tap);
  EXPECT_EQ(a.vmm_started, b.vmm_started);
  EXPECT_EQ(a.boot_id, b.boot_id);
  EXPECT_EQ(a.device, b.device);
  EXPECT_EQ(a.netns, b.netns);
  EXPECT_EQ(a.netns_identity, b.netns_identity);
  EXPECT_EQ(a.netns_identity.cookie, b.netns_identity.cookie);
  EXPECT_EQ(a.tap_netns, b.tap_netns);
  EXPECT_EQ(a.tap_netns_identity, b.tap_netns_identity);
}

void expect_equal(const Forward& a, const Forward& b) {
  EXPECT_EQ(a.id, b.id);
  EXPECT_EQ(a.instance_id, b.instance_id);
  EXPECT_EQ(a.session_id, b.session_id);
  EXPECT_EQ(a.guest_port, b.guest_port);
  EXPECT_EQ(a.host_port, b.host_port);
  EXPECT_EQ(a.protocol, b.protocol);
  EXPECT_EQ(a.limits, b.limits);
  EXPECT_EQ(a.admin_limits, b.admin_limits);
  EXPECT_EQ(a.label, b.label);
  EXPECT_EQ(a.target, b.target);
  EXPECT_EQ(a.created_at, b.created_at);
}

/// A limit of this process that makes writes fail like a broken disk: EFBIG, which SQLite reports as an
/// I/O error.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    getrlimit(RLIMIT_FSIZE, &before_);
    const rlimit limit{.rlim_cur = bytes, .rlim_max = before_.rlim_max};
    handler_before_ = std::signal(SIGXFSZ, SIG_IGN);
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  FileSizeLimit(const FileSizeLimit&) = delete;
  FileSizeLimit& operator=(const FileSizeLimit&) = delete;
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_before_);
  }

 private:
  rlimit before_{};
  void (*handler_before_)(int) = nullptr;
};

class StoreTest : public testing::Test {
 protected:
  /// On the store's directory, for this thread's process only.
  void mount_small_filesystem() {
    ASSERT_EQ(unshare(CLONE_NEWNS), 0);
    ASSERT_EQ(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
    ASSERT_EQ(mount("small", directory_.c_str(), "tmpfs", 0, "size=512k"), 0);
  }

  std::string path() const { return directory_ / "portway.db"; }
  Result<std::unique_ptr<Store>> open() const { return Store::open(path()); }
  std::unique_ptr<Store> open_store() const { return open().value(); }

  /// What an administrator does with a sqlite3 shell.
  void edit(const std::string& sql) const {
    SQLite::Database(path(), SQLite::OPEN_READWRITE | SQLite::OPEN_CREATE).exec(sql);
  }

  test::TemporaryDirectory own_;
  const fs::path directory_ = own_.path();
};

mode_t mode_of(const fs::path& path) {
  struct stat status {};
  EXPECT_EQ(::stat(path.c_str(), &status), 0) << path;
  return status.st_mode & 0777;
}

std::vector<std::uint16_t> host_ports(Store& store) {
  std::vector<std::uint16_t> ports;
  for (const Forward& forward : store.load_forwards().value()) ports.push_back(forward.host_port);
  return ports;
}

void expect_unavailable(const Result<void>& result, const std::string& path, const std::string& remedy) {
  ASSERT_FALSE(result);
  EXPECT_EQ(result.error().code, ErrorCode::kStoreUnavailable);
  EXPECT_THAT(result.error().detail, AllOf(HasSubstr(path), HasSubstr(remedy)));
}

template <class T>
void expect_unavailable(const Result<T>& result, const std::string& path, const std::string& remedy) {
  ASSERT_FALSE(result);
  expect_unavailable(Result<void>(result.error()), path, remedy);
}

TEST_F(StoreTest, GivesBackEveryFieldAfterARestart) {
  Instance full = make_instance("vm-1.example_A");
  full.guest_address = *parse_address("fd00::2");
  full.tap = "tap_with.a-name";
  full.profile = "large";
  full.vmm_pid = 4'194'304;
  Instance stopped = make_instance("vm-2");
  stopped.state = InstanceState::kStopped;
  stopped.guest_address_v6 = *parse_address("fd00::3");
  Forward forward = make_forward(full, 65535);
  forward.guest_port = 1;
  forward.label = "grüße ' \"; DROP TABLE forwards; --";
  forward.limits = {.allowed_cidrs = {*Cidr::parse("203.0.113.0/24"), *Cidr::parse("2001:db8::/32")},
                    .max_connections = 4'294'967'295,
                    .max_connections_per_source = 2,
                    .max_new_connections_per_second = 3,
                    .max_bytes_per_second = 1'000'000'000'000};
  forward.admin_limits.set(static_cast<std::size_t>(Limit::kAllowedCidrs));
  forward.admin_limits.set(static_cast<std::size_t>(Limit::kMaxBytesPerSecond));
  stopped.ended = SessionEnd::kTapDeleted;
  full.tap_index = 2'147'483'647;
  full.tap_carrier_downs = 4'294'967'295;
  stopped.idle_tap = {.index = 2'147'483'647, .carrier_downs = 0};
  full.vmm_started = 77;
  full.boot_id = "boot";
  full.device = "br0";
  full.netns = "/run/netns/a";
  full.netns_identity = {.cookie = 18'446'744'073'709'551'615U, .device = 4, .inode = 4'026'532'000};
  full.tap_netns = "vmm_pid";
  full.tap_netns_identity = {.cookie = 0, .device = 4, .inode = 4'026'532'001};
  full.target = {.kind = TargetKind::kFirecrackerVsock, .socket = "/run/fc/v.sock", .port = kVsockPortMax};
  stopped.target = {.kind = TargetKind::kFirecrackerVsock, .socket = "/run/fc/v.sock"};
  const ApiKey key = make_key(Role::kAdmin, 1);
  ApiKey full_key = make_key(Role::kTenant, 2);
  full_key.description = "grüße ' \"; DROP TABLE api_keys; --";
  full_key.scope = KeyScope::kRead;
  full_key.instance_id = "vm-1";
  full_key.expires_at = now() + std::chrono::hours(1);
  full_key.last_used_at = now();
  full_key.old_secret = {.sha256 = {3}, .valid_until = now()};
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(full)));
    EXPECT_TRUE(test::run(store->put_instance(stopped)));
    EXPECT_TRUE(test::run(store->add_forward(forward)));
    EXPECT_TRUE(test::run(store->add_api_key(key)));
    EXPECT_TRUE(test::run(store->add_api_key(full_key)));
  }
  const auto store = open_store();
  const auto instances = store->load_instances().value();
  ASSERT_THAT(instances, SizeIs(2));
  expect_equal(instances[0], full);
  expect_equal(instances[1], stopped);
  const auto forwards = store->load_forwards().value();
  ASSERT_THAT(forwards, SizeIs(1));
  expect_equal(forwards[0], forward);
  EXPECT_THAT(store->load_api_keys().value(), ElementsAre(key, full_key));
}

TEST_F(StoreTest, AKeyFromBeforeThereWereScopesMayDoAllThatItCould) {
  const ApiKey key = make_key(Role::kTenant, 1);
  EXPECT_TRUE(test::run(open_store()->add_api_key(key)));
  edit(kBackToVersion6);
  EXPECT_THAT(open_store()->load_api_keys().value(), ElementsAre(key));
}

TEST_F(StoreTest, UsageFromBeforeItWasCountedBeginsNow) {
  Instance instance = make_instance("vm-1");
  instance.created_at = Timestamp(std::chrono::seconds(1'000'000'000));
  const Forward forward = make_forward(instance, 20000);
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forward(forward)));
  }
  edit(kBackToVersion6);
  const auto usage = open_store()->load_usage().value();
  ASSERT_THAT(usage, SizeIs(2));
  EXPECT_EQ(usage[0].id, "vm-1");
  EXPECT_GT(usage[0].since, instance.created_at);
  EXPECT_EQ(usage[0].totals, UsageTotals());
  EXPECT_EQ(usage[1].id, to_string(forward.id));
  EXPECT_EQ(usage[1].kind, StoredUsage::Kind::kForward);
}

TEST_F(StoreTest, UsageIsKeptAndGoesWithWhatItIsOf) {
  const Instance instance = make_instance("vm-1");
  const Forward forward = make_forward(instance, 20000);
  const auto store = open_store();
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  EXPECT_TRUE(test::run(store->add_forward(forward)));
  const StoredUsage of_instance{.kind = StoredUsage::Kind::kInstance,
                                .id = "vm-1",
                                .since = instance.created_at,
                                .totals = {.connections = 1,
                                           .received_bytes = 2,
                                           .sent_bytes = 3,
                                           .connection_us = 4000,
                                           .last_byte_at_ms = 5,
                                           .last_connection_at_ms = 6}};
  StoredUsage of_forward = of_instance;
  of_forward.kind = StoredUsage::Kind::kForward;
  of_forward.id = to_string(forward.id);
  of_forward.totals.connections = 9'000'000'000'000'000'000;
  store->save_usage({of_instance, of_forward}, [](const Result<void>& saved) { EXPECT_TRUE(saved); });
  EXPECT_THAT(store->load_usage().value(), ElementsAre(of_instance, of_forward));
  EXPECT_TRUE(test::run(store->put_instance(instance))) << "which replaces nothing of it";
  EXPECT_TRUE(test::run(store->delete_forward(forward.id)));
  EXPECT_THAT(store->load_usage().value(), ElementsAre(of_instance));
  EXPECT_TRUE(test::run(store->delete_instance("vm-1")));
  EXPECT_THAT(store->load_usage().value(), IsEmpty());
}

TEST_F(StoreTest, ChangesOfAKeyTheFieldsThatAreGiven) {
  ApiKey key = make_key(Role::kTenant, 1);
  const auto store = open_store();
  EXPECT_TRUE(test::run(store->add_api_key(key)));
  EXPECT_TRUE(test::run(store->add_api_key(make_key(Role::kTenant, 2))));
  const auto expect_key = [&] { EXPECT_EQ(store->load_api_keys().value().front(), key); };
  EXPECT_TRUE(test::run(store->change_api_key(key.id, {.description = "of a job"})));
  key.description = "of a job";
  expect_key();
  EXPECT_TRUE(test::run(store->change_api_key(key.id, {.expires_at = now()})));
  key.expires_at = now();
  EXPECT_EQ(store->load_api_keys().value().front().description, "of a job");
  EXPECT_TRUE(store->load_api_keys().value().front().expires_at);
  EXPECT_TRUE(test::run(store->change_api_key(key.id, {.expires_at = std::optional<Timestamp>()})));
  key.expires_at = std::nullopt;
  expect_key();
  EXPECT_TRUE(test::run(store->change_api_key(key.id, {})));
  expect_key();
  EXPECT_EQ(test::run(store->change_api_key(make_uuid(), {.description = "x"})).error().code,
            ErrorCode::kNotFound);
}

TEST_F(StoreTest, RotatesAKeyWithOneOldSecretAtMost) {
  ApiKey key = make_key(Role::kTenant, 1);
  const auto store = open_store();
  EXPECT_TRUE(test::run(store->add_api_key(key)));
  EXPECT_TRUE(test::run(store->add_api_key(make_key(Role::kTenant, 9))));
  const auto expect_key = [&] { EXPECT_EQ(store->load_api_keys().value().front(), key); };
  for (std::uint8_t next = 2; next < 4; ++next) {
    key.old_secret = {.sha256 = key.secret_sha256, .valid_until = now()};
    key.secret_sha256 = {next};
    EXPECT_TRUE(test::run(store->rotate_api_key(key.id, key.secret_sha256, key.old_secret->valid_until)));
    expect_key();
  }
  key.old_secret = std::nullopt;
  key.secret_sha256 = {4};
  EXPECT_TRUE(test::run(store->rotate_api_key(key.id, key.secret_sha256, std::nullopt)));
  expect_key();
  EXPECT_EQ(test::run(store->rotate_api_key(make_uuid(), {5}, std::nullopt)).error().code,
            ErrorCode::kNotFound);
}

TEST_F(StoreTest, SavesWhenKeysWereUsedAndSkipsThoseThatAreGone) {
  ApiKey key = make_key(Role::kTenant, 1);
  const auto store = open_store();
  EXPECT_TRUE(test::run(store->add_api_key(key)));
  key.last_used_at = now();
  std::optional<Result<void>> saved;  // the next call comes after it
  store->save_api_key_uses(
      {{.id = make_uuid(), .last_used_at = now()}, {.id = key.id, .last_used_at = *key.last_used_at}},
      [&saved](const Result<void>& result) { saved = result; });
  EXPECT_THAT(store->load_api_keys().value(), ElementsAre(key));
  ASSERT_TRUE(saved);
  EXPECT_TRUE(*saved);
}

TEST_F(StoreTest, KeepsWhereAForwardLeads) {
  const Instance instance = make_instance("vm-1");
  Forward vsock = make_forward(instance, 20000);
  vsock.guest_port = 0;
  vsock.target = {.kind = TargetKind::kFirecrackerVsock, .socket = "/run/fc/v.sock", .port = kVsockPortMax};
  Forward socket = make_forward(instance, 20001);
  socket.guest_port = 0;
  socket.target = {.kind = TargetKind::kUnix, .socket = "/run/fc/" + std::string(99, 'x')};
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forwards({vsock, socket})));
  }
  const auto forwards = open_store()->load_forwards().value();
  ASSERT_THAT(forwards, SizeIs(2));
  expect_equal(forwards[0], vsock);
  expect_equal(forwards[1], socket);
}

TEST_F(StoreTest, AForwardFromBeforeThereWereSocketsLeadsToItsGuestPort) {
  const Instance instance = make_instance("vm-1");
  const Forward forward = make_forward(instance, 20000);
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forward(forward)));
  }
  edit(kBackToVersion6);
  const auto forwards = open_store()->load_forwards().value();
  ASSERT_THAT(forwards, SizeIs(1));
  expect_equal(forwards[0], forward);
}

TEST_F(StoreTest, RefusesATargetThatNoRequestCouldHaveMade) {
  const Instance instance = make_instance("vm-1");
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
  }
  for (const char* wrong :
       {"target_kind = 'pipe'", "target_kind = 'unix', target_socket = 'x'",
        "target_kind = 'unix', target_socket = '/run/../etc/x'",
        "target_kind = 'firecracker_vsock', target_socket = '/run/x', target_port = 0",
        "target_kind = 'firecracker_vsock', target_socket = '/run/x', target_port = 4294967296",
        "target_kind = 'tcp', guest_port = 0"}) {
    edit("UPDATE forwards SET target_kind = 'tcp', target_socket = '', target_port = 0, guest_port = 3000");
    edit(std::string("UPDATE forwards SET ") + wrong);
    EXPECT_FALSE(open_store()->load_forwards()) << wrong;
  }
}

// What an earlier version did not store is absent, not zero: zero is a valid count.
TEST_F(StoreTest, ARowFromBeforeCarriersWereCountedHasNoCount) {
  Instance armed = make_instance("vm-1");
  armed.tap_index = 7;
  armed.tap_carrier_downs = 1;
  EXPECT_TRUE(test::run(open_store()->put_instance(armed)));
  edit(kBackToVersion6);
  edit(kBackToVersion4);
  const auto instances = open_store()->load_instances().value();
  ASSERT_THAT(instances, SizeIs(1));
  armed.tap_carrier_downs = std::nullopt;
  expect_equal(instances[0], armed);
}

TEST_F(StoreTest, LoadsInOrderOfIds) {
  const auto store = open_store();
  for (const char* id : {"vm-c", "vm-a", "vm-b"})
    EXPECT_TRUE(test::run(store->put_instance(make_instance(id))));
  const auto instances = store->load_instances().value();
  ASSERT_THAT(instances, SizeIs(3));
  EXPECT_EQ(instances[0].id, "vm-a");
  EXPECT_EQ(instances[2].id, "vm-c");

  std::vector<Forward> forwards;
  for (const std::uint16_t port : std::array<std::uint16_t, 3>{20003, 20001, 20002}) {
    forwards.push_back(make_forward(instances[0], port));
  }
  EXPECT_TRUE(test::run(store->add_forward(forwards[2])));
  EXPECT_TRUE(test::run(store->add_forward(forwards[0])));
  EXPECT_TRUE(test::run(store->add_forward(forwards[1])));
  EXPECT_THAT(host_ports(*store), ElementsAre(20003, 20001, 20002));
}

TEST_F(StoreTest, ReplacesAnInstanceAndKeepsItsForwards) {
  const auto store = open_store();
  Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
  instance.owner = "other";
  instance.vmm_pid = 77;
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  const auto instances = store->load_instances().value();
  ASSERT_THAT(instances, SizeIs(1));
  expect_equal(instances[0], instance);
  EXPECT_THAT(host_ports(*store), ElementsAre(20000));
}

TEST_F(StoreTest, ANewSessionEndsTheForwardsOfTheOldOneOnly) {
  const auto store = open_store();
  Instance instance = make_instance("vm-1");
  const Instance neighbour = make_instance("vm-2");
  EXPECT_TRUE(test::run(store->start_session(instance)));
  EXPECT_TRUE(test::run(store->start_session(neighbour)));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(neighbour, 20001))));
  EXPECT_TRUE(test::run(store->start_session(instance))) << "the same session once more";
  EXPECT_THAT(host_ports(*store), ElementsAre(20000, 20001));

  instance.session_id = make_uuid();
  EXPECT_TRUE(test::run(store->start_session(instance)));
  EXPECT_THAT(host_ports(*store), ElementsAre(20001));
  EXPECT_EQ(store->load_instances().value()[0].session_id, instance.session_id);
}

TEST_F(StoreTest, AnEndedSessionLeavesAStoppedInstanceWithoutForwards) {
  const auto store = open_store();
  Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->start_session(instance)));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
  instance.state = InstanceState::kStopped;
  EXPECT_TRUE(test::run(store->end_session(instance)));
  EXPECT_THAT(host_ports(*store), IsEmpty());
  EXPECT_EQ(store->load_instances().value()[0].state, InstanceState::kStopped);
}

TEST_F(StoreTest, DeletesAnInstanceWithItsForwards) {
  const auto store = open_store();
  const Instance instance = make_instance("vm-1");
  const Instance neighbour = make_instance("vm-2");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  EXPECT_TRUE(test::run(store->put_instance(neighbour)));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(neighbour, 20001))));
  EXPECT_TRUE(test::run(store->delete_instance("vm-1")));
  EXPECT_THAT(host_ports(*store), ElementsAre(20001));
  EXPECT_THAT(store->load_instances().value(), SizeIs(1));
  EXPECT_TRUE(test::run(store->delete_instance("vm-1"))) << "again";
}

TEST_F(StoreTest, WhatWasDeletedDoesNotComeBackAfterARestart) {
  const Instance instance = make_instance("vm-1");
  const Forward forward = make_forward(instance, 20000);
  const ApiKey key = make_key(Role::kTenant, 1);
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forward(forward)));
    EXPECT_TRUE(test::run(store->add_api_key(key)));
    EXPECT_TRUE(test::run(store->delete_forward(forward.id)));
    EXPECT_TRUE(test::run(store->delete_api_key(key.id)));
    EXPECT_TRUE(test::run(store->delete_forward(forward.id))) << "again";
    EXPECT_TRUE(test::run(store->delete_api_key(key.id))) << "again";
  }
  const auto store = open_store();
  EXPECT_THAT(host_ports(*store), IsEmpty());
  EXPECT_THAT(store->load_api_keys().value(), IsEmpty());
}

TEST_F(StoreTest, UpdatesALabelAndNothingElse) {
  const auto store = open_store();
  const Instance instance = make_instance("vm-1");
  const Forward forward = make_forward(instance, 20000);
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  EXPECT_TRUE(test::run(store->add_forward(forward)));
  Forward changed = forward;
  changed.label = "web";
  changed.host_port = 20001;
  EXPECT_TRUE(test::run(store->update_forward(changed)));
  Forward expected = forward;
  expected.label = "web";
  expect_equal(store->load_forwards().value().at(0), expected);

  const auto unknown = test::run(store->update_forward(make_forward(instance, 20002)));
  ASSERT_FALSE(unknown);
  EXPECT_EQ(unknown.error().code, ErrorCode::kNotFound);
}

TEST_F(StoreTest, AnAnswerIsRememberedWithItsForwardsOrNotAtAll) {
  const Instance instance = make_instance("vm-1");
  IdempotentAnswer answer{.scope = "tenant:acme",
                          .key = "again",
                          .payer = "tenant:acme",
                          .request_sha256 = {1, 2, 3},
                          .location = "/here",
                          .etag = "\"1\"",
                          .body = "{}",
                          .created_at = now()};
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forwards({make_forward(instance, 20000)}, answer)));
    answer.key = "other";
    EXPECT_FALSE(test::run(store->add_forwards({make_forward(instance, 20000)}, answer)));
    EXPECT_EQ(test::run(store->find_answer("tenant:acme", "other")).value(), std::nullopt);
  }
  const auto store = open_store();
  answer.key = "again";
  EXPECT_EQ(test::run(store->find_answer("tenant:acme", "again")).value(), answer);
  EXPECT_EQ(test::run(store->find_answer("admin:acme", "again")).value(), std::nullopt);
}

/// A node whose clock is set, and that is restarted, while time passes.
class StoreAnswerTest : public StoreTest {
 protected:
  StoreAnswerTest() { store_ = open_node(); }

  void pass(std::chrono::milliseconds time) {
    uptime_ += time;
    clock_ += time;
  }
  void step_clock(std::chrono::milliseconds step) { clock_ += step; }
  void restart() {
    store_.reset();
    store_ = open_node();
  }
  void reboot(std::chrono::milliseconds until_start) {
    store_.reset();
    boot_id_ += "'";
    uptime_ = until_start;
    store_ = open_node();
  }
  /// Turns the store into one left by a Portway that took the age of answers from the clock.
  void go_back_to_version_6() {
    store_.reset();
    edit(kBackToVersion6);
  }

  bool add(const std::string& key, const std::string& body = "{}", const std::string& payer = "tenant:acme") {
    const Instance instance = make_instance("vm-1");
    const Forward forward = make_forward(instance, 20000);
    const IdempotentAnswer answer{.scope = "tenant:acme",
                                  .key = key,
                                  .payer = payer,
                                  .location = "",
                                  .body = body,
                                  .created_at = clock_};
    return test::run(store_->start_session(instance)) && test::run(store_->add_forwards({forward}, answer));
  }
  bool has(const std::string& key) {
    return test::run(store_->find_answer("tenant:acme", key)).value().has_value();
  }

  std::unique_ptr<Store> open_node() {
    return Store::open(path(), nullptr,
                       {.boot_id = [this] { return boot_id_; }, .uptime = [this] { return uptime_; }})
        .value();
  }

  static constexpr std::chrono::hours kDay{24};

  std::string boot_id_ = "boot";
  std::chrono::milliseconds uptime_ = 30 * kDay;
  Timestamp clock_ = now();
  std::unique_ptr<Store> store_;
};

TEST_F(StoreAnswerTest, KeepsOneForADayThatPassesWhateverTheClockIsSetTo) {
  for (const auto step : {0 * kDay, 2 * kDay, -2 * kDay}) {
    const std::string key = std::to_string(step.count());
    ASSERT_TRUE(add(key));
    step_clock(step);
    ASSERT_TRUE(add("after " + key));
    EXPECT_TRUE(has(key)) << "the clock was set by " << key << " h";
    pass(Store::kAnswerKept);
    EXPECT_TRUE(has(key)) << "the clock was set by " << key << " h";
    pass(std::chrono::milliseconds(1));
    EXPECT_FALSE(has(key)) << "the clock was set by " << key << " h";
  }
  pass(std::chrono::seconds(1));
  ASSERT_TRUE(add("last"));
  store_.reset();
  SQLite::Database reader(path(), SQLite::OPEN_READONLY);
  EXPECT_EQ(reader.execAndGet("SELECT count(*) FROM idempotent_answers").getInt(), 1)
      << "old ones are deleted";
}

TEST_F(StoreAnswerTest, ARestartOfTheDaemonDoesNotChangeItsAge) {
  ASSERT_TRUE(add("first"));
  step_clock(-2 * kDay);
  pass(std::chrono::hours(23));
  restart();
  EXPECT_TRUE(has("first"));
  ASSERT_TRUE(add("second"));
  restart();
  pass(std::chrono::hours(1));
  EXPECT_TRUE(has("first"));
  pass(std::chrono::milliseconds(1));
  EXPECT_FALSE(has("first"));
  EXPECT_TRUE(has("second"));
}

TEST_F(StoreAnswerTest, AfterARebootItIsAsOldAsItWasKnownToBeAndTheTimeSinceTheKernelBegan) {
  ASSERT_TRUE(add("first"));
  pass(std::chrono::hours(10));
  ASSERT_TRUE(add("second"));
  step_clock(2 * kDay);
  reboot(std::chrono::hours(1));
  EXPECT_TRUE(has("first"));
  for (int restarts = 0; restarts < 3; ++restarts) {
    pass(std::chrono::hours(4));
    restart();
    EXPECT_TRUE(has("first"));
  }
  ASSERT_TRUE(add("third"));
  pass(std::chrono::hours(1));
  restart();
  EXPECT_TRUE(has("first"));
  pass(std::chrono::milliseconds(1));
  EXPECT_FALSE(has("first"));
  EXPECT_TRUE(has("second"));
  reboot(std::chrono::hours(9));
  EXPECT_TRUE(has("second"));
  pass(std::chrono::hours(2) + std::chrono::milliseconds(1));
  EXPECT_FALSE(has("second"));
  EXPECT_TRUE(has("third"));
}

TEST_F(StoreAnswerTest, IfTheBootIsUnknownItIsKept) {
  boot_id_.clear();
  restart();
  ASSERT_TRUE(add("first"));
  reboot(std::chrono::hours(48));
  boot_id_.clear();
  restart();
  EXPECT_TRUE(has("first"));
  pass(Store::kAnswerKept + std::chrono::milliseconds(1));
  EXPECT_FALSE(has("first"));
}

TEST_F(StoreAnswerTest, AfterAStepBackTheNewestAreNotForgottenFirst) {
  const std::string body(Store::kAnswerBytesMax / 20, 'x');
  constexpr int kAnswers = 60;
  for (int i = 0; i < kAnswers; ++i) {
    if (i == 30) step_clock(-kDay);
    ASSERT_TRUE(add(std::to_string(i), body));  // all in one millisecond
  }
  for (int i = kAnswers - 20; i < kAnswers; ++i) EXPECT_TRUE(has(std::to_string(i))) << i;
  EXPECT_FALSE(has("0"));
}

TEST_F(StoreAnswerTest, OfMoreThanItRemembersTheFirstAreForgottenAlsoAfterAStepBack) {
  ASSERT_TRUE(add("newest"));
  step_clock(-kDay);
  store_.reset();
  edit("WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < " +
       std::to_string(Store::kAnswersMax) +
       ") INSERT INTO idempotent_answers SELECT scope, 'key ' || i, request_sha256, location, body, "
       "created_at, running_ms - i, etag, payer FROM idempotent_answers, n");
  store_ = open_node();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(add(std::to_string(i)));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(has(std::to_string(i))) << i;
  EXPECT_TRUE(has("newest"));
  EXPECT_TRUE(has("key " + std::to_string(Store::kAnswersMax - 4)));
  EXPECT_FALSE(has("key " + std::to_string(Store::kAnswersMax - 3)));
}

TEST_F(StoreAnswerTest, WhoeverAsksForMuchLosesItsOwn) {
  const std::string body(Store::kAnswerBytesMax / 4, 'x');
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(add("quiet " + std::to_string(i), body, "admin:quiet"));
  for (int i = 0; i < 20; ++i) ASSERT_TRUE(add("loud " + std::to_string(i), body, "admin:loud"));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(has("quiet " + std::to_string(i))) << "of the same scope";
  EXPECT_TRUE(has("loud 19"));
  EXPECT_FALSE(has("loud 12"));
}

TEST_F(StoreAnswerTest, AllTogetherAreBoundedAndThoseWithTheMostLoseTheirOldest) {
  const auto bytes = [this] {
    SQLite::Database reader(path(), SQLite::OPEN_READONLY);
    return static_cast<std::size_t>(
        reader.execAndGet("SELECT sum(length(body)) FROM idempotent_answers").getInt64());
  };
  ASSERT_TRUE(add("small", "{}", "small"));
  const std::string body(Store::kAnswerBytesMax / 2, 'x');
  constexpr std::size_t kPayers = 24;  // of which 16 have room
  for (std::size_t i = 0; i < kPayers; ++i) {
    for (const std::string answer : {"first", "second"}) {
      ASSERT_TRUE(add(answer + std::to_string(i), body, std::to_string(i)));
      if (i == kPayers / 2) restart();
    }
    if (i % 4 != 3) continue;
    ASSERT_LE(bytes(), Store::kAllAnswersBytesMax + Store::kAllAnswersBytesMax / 4 + body.size());
  }
  EXPECT_TRUE(has("small"));
  EXPECT_FALSE(has("first0"));
  EXPECT_TRUE(has("second" + std::to_string(kPayers - 1)));
  // Larger than any part: what was given just now is remembered all the same.
  ASSERT_TRUE(add("huge", std::string(Store::kAllAnswersBytesMax, 'x'), "huge"));
  EXPECT_TRUE(has("huge"));
  EXPECT_TRUE(has("small"));
}

TEST_F(StoreAnswerTest, OneFromBeforeIsAsOldAsTheClockSaysWhenTheStoreIsUpgraded) {
  step_clock(-std::chrono::hours(20));
  ASSERT_TRUE(add("20 h old"));
  step_clock(-std::chrono::hours(5));
  ASSERT_TRUE(add("25 h old"));
  step_clock(3 * kDay);
  ASSERT_TRUE(add("not yet made"));
  go_back_to_version_6();
  store_ = open_node();
  EXPECT_TRUE(has("20 h old"));
  EXPECT_FALSE(has("25 h old"));
  EXPECT_TRUE(has("not yet made"));
  ASSERT_TRUE(add("new"));
  pass(std::chrono::hours(5));
  restart();
  EXPECT_FALSE(has("20 h old"));
  EXPECT_TRUE(has("not yet made"));
  pass(std::chrono::hours(19) + std::chrono::milliseconds(1));
  EXPECT_FALSE(has("not yet made"));
}

TEST_F(StoreAnswerTest, FilesThatAreWrittenAgainDoNotChangeItsAge) {
  ASSERT_TRUE(add("first"));
  pass(std::chrono::hours(23));
  fs::remove(path());
  ASSERT_TRUE(add("second"));
  EXPECT_TRUE(has("first"));
  pass(std::chrono::hours(1) + std::chrono::milliseconds(1));
  EXPECT_FALSE(has("first"));
  EXPECT_TRUE(has("second"));
}

TEST(BootClock, IsTheKernels) {
  EXPECT_THAT(kernel_boot_id(), SizeIs(36));
  const auto before = kernel_uptime();
  EXPECT_GT(before.count(), 0);
  EXPECT_GE(kernel_uptime(), before);
  double up_seconds = 0;
  std::ifstream("/proc/uptime") >> up_seconds;
  EXPECT_GE(up_seconds + 0.011, std::chrono::duration<double>(before).count());
}

// A tenant that created and deleted batches, each with another key, filled the disk.
TEST_F(StoreTest, RemembersSoManyBytesOfAnswersAndNoMore) {
  const auto store = open_store();
  const Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  const Timestamp began = now();
  const std::string body(Store::kAnswerBytesMax / 20, 'x');
  constexpr int kAnswers = 60;
  for (int i = 0; i < kAnswers; ++i) {
    const IdempotentAnswer answer{.scope = "tenant:acme",
                                  .key = std::to_string(i),
                                  .payer = "tenant:acme",
                                  .location = "",
                                  .body = body,
                                  .created_at = began + std::chrono::milliseconds(i)};
    const Forward forward = make_forward(instance, 20000);
    ASSERT_TRUE(test::run(store->add_forwards({forward}, answer)));
    ASSERT_TRUE(test::run(store->delete_forward(forward.id)));
  }
  int remembered = 0;
  for (int i = 0; i < kAnswers; ++i) {
    const bool found = test::run(store->find_answer("tenant:acme", std::to_string(i))).value().has_value();
    EXPECT_TRUE(found || i < kAnswers - 20) << i;
    remembered += found ? 1 : 0;
  }
  EXPECT_LE(remembered, 27);
}

TEST_F(StoreTest, AddsAllForwardsOrNone) {
  const auto store = open_store();
  const Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20001))));
  const auto taken = test::run(store->add_forwards(
      {make_forward(instance, 20000), make_forward(instance, 20001), make_forward(instance, 20002)}));
  ASSERT_FALSE(taken);
  EXPECT_EQ(taken.error().code, ErrorCode::kInternal);
  EXPECT_THAT(taken.error().detail, HasSubstr("forwards.host_port"));
  EXPECT_THAT(host_ports(*store), ElementsAre(20001));

  EXPECT_TRUE(test::run(store->add_forwards({make_forward(instance, 20000), make_forward(instance, 20002)})));
  EXPECT_THAT(host_ports(*store), ElementsAre(20001, 20000, 20002));
}

TEST_F(StoreTest, RefusesAForwardOfAnUnknownInstance) {
  const auto store = open_store();
  const auto orphan = test::run(store->add_forward(make_forward(make_instance("vm-1"), 20000)));
  ASSERT_FALSE(orphan);
  EXPECT_EQ(orphan.error().code, ErrorCode::kInternal);
  EXPECT_THAT(host_ports(*store), IsEmpty());
}

TEST_F(StoreTest, RefusesTheSameSecretTwice) {
  const auto store = open_store();
  EXPECT_TRUE(test::run(store->add_api_key(make_key(Role::kAdmin, 1))));
  EXPECT_FALSE(test::run(store->add_api_key(make_key(Role::kTenant, 1))));
  EXPECT_TRUE(test::run(store->add_api_key(make_key(Role::kTenant, 2))));
  EXPECT_THAT(store->load_api_keys().value(), SizeIs(2));
}

TEST_F(StoreTest, KeepsItsFilesToItself) {
  const fs::path directory = directory_ / "var" / "lib";
  const auto opened = Store::open(directory / "portway.db");
  ASSERT_TRUE(opened);
  EXPECT_EQ(mode_of(directory_ / "var"), 0700);
  EXPECT_EQ(mode_of(directory), 0700);
  for (const char* file : {"portway.db", "portway.db-wal", "portway.db-shm", "portway.db.lock"}) {
    EXPECT_EQ(mode_of(directory / file), 0600) << file;
  }
}

TEST_F(StoreTest, RefusesAFileThatAnotherStoreHasOpen) {
  auto store = open_store();
  expect_unavailable(open(), path(), "another portwayd has it open");
  fs::create_symlink(path(), directory_ / "alias.db");
  expect_unavailable(Store::open(directory_ / "alias.db"), path(), "another portwayd has it open");

  EXPECT_TRUE(test::run(store->put_instance(make_instance("vm-1")))) << "the first one is not disturbed";
  store.reset();
  EXPECT_THAT(open_store()->load_instances().value(), SizeIs(1));
}

// Two daemons on one file would each overwrite what the other had acknowledged.
TEST_F(StoreTest, RefusesAFileThatAnotherStoreHasOpenByAnotherName) {
  const auto store = open_store();
  const fs::path link = directory_ / "link.db";
  fs::create_hard_link(path(), link);
  expect_unavailable(Store::open(link), link, "another portwayd has it open");
  fs::remove(link);

  PORTWAY_NEEDS(geteuid() == 0 ? "" : "mounting needs root: run the tests with sudo");
  ASSERT_EQ(unshare(CLONE_NEWNS), 0);
  ASSERT_EQ(mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr), 0);
  std::ofstream{link};
  ASSERT_EQ(mount(path().c_str(), link.c_str(), nullptr, MS_BIND, nullptr), 0);
  expect_unavailable(Store::open(link), link, "another portwayd has it open");
  EXPECT_EQ(umount(link.c_str()), 0);
}

TEST_F(StoreTest, LetsOthersReadMeanwhile) {
  const auto store = open_store();
  EXPECT_TRUE(test::run(store->put_instance(make_instance("vm-1"))));
  SQLite::Database reader(path(), SQLite::OPEN_READONLY);
  EXPECT_EQ(reader.execAndGet("SELECT count(*) FROM instances").getInt(), 1);
}

TEST_F(StoreTest, AForwardFromBeforeHasNoLimitOfAnAdmin) {
  const Instance instance = make_instance("vm-1");
  Forward forward = make_forward(instance, 20000);
  forward.limits.max_connections = 7;
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forward(forward)));
  }
  edit(kBackToVersion6);
  edit(kBackToVersion4);
  const auto forwards = open_store()->load_forwards().value();
  ASSERT_THAT(forwards, SizeIs(1));
  expect_equal(forwards[0], forward);
}

TEST_F(StoreTest, AnInstanceFromBeforeHasTheOneAddressThatItHadAndCanGetASecond) {
  Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(open_store()->put_instance(instance)));
  edit(kBackToVersion6);
  edit(kBackToVersion4);
  {
    const auto store = open_store();
    expect_equal(store->load_instances().value().at(0), instance);
    instance.guest_address_v6 = *parse_address("fd00::2");
    EXPECT_TRUE(test::run(store->put_instance(instance)));
  }
  {
    const auto store = open_store();
    expect_equal(store->load_instances().value().at(0), instance);
    instance.guest_address_v6.reset();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
  }
  expect_equal(open_store()->load_instances().value().at(0), instance);
}

TEST_F(StoreTest, KnowsAcrossRestartsWhetherTheNodeIsDrained) {
  const NodeDrain drain{.since = now()};
  {
    const auto store = open_store();
    EXPECT_EQ(store->load_drain().value(), NodeDrain());
    EXPECT_TRUE(test::run(store->put_drain(drain)));
    EXPECT_TRUE(test::run(store->put_drain(drain)));
  }
  {
    const auto store = open_store();
    EXPECT_EQ(store->load_drain().value(), drain);
    EXPECT_TRUE(test::run(store->put_drain({})));
  }
  EXPECT_EQ(open_store()->load_drain().value(), NodeDrain());
}

TEST_F(StoreTest, OneFromBeforeDrainsIsNotDrained) {
  open_store();
  edit("DROP TABLE node; PRAGMA user_version = 15");
  const auto store = open_store();
  EXPECT_EQ(store->load_drain().value(), NodeDrain());
  EXPECT_TRUE(test::run(store->put_drain({.since = now()})));
  EXPECT_TRUE(store->load_drain().value().since);
}

TEST_F(StoreTest, ADrainThatMakesNoSenseNamesItsRow) {
  open_store();
  edit("UPDATE node SET draining_since = -1");
  const auto drain = open_store()->load_drain();
  ASSERT_FALSE(drain);
  EXPECT_THAT(drain.error().detail, testing::HasSubstr("in table node, the row with id"));
}

TEST_F(StoreTest, RefusesADatabaseOfANewerPortway) {
  open_store();
  edit("PRAGMA user_version = 4711");
  expect_unavailable(open(), path(), "newer Portway wrote it (schema 4711");
}

TEST_F(StoreTest, RefusesTheDatabaseOfAnotherProgramAndLeavesItAlone) {
  edit("CREATE TABLE bookmarks (url TEXT)");
  expect_unavailable(open(), path(), "belongs to another program");
  EXPECT_FALSE(fs::exists(path() + "-wal"));
}

TEST_F(StoreTest, RefusesAFileThatIsNoDatabase) {
  std::ofstream(path()) << std::string(8192, 'x');
  expect_unavailable(open(), path(), "restore a backup (portwayd --restore FILE)");
}

TEST_F(StoreTest, RefusesADirectoryInPlaceOfTheFile) {
  fs::create_directory(path());
  expect_unavailable(open(), path(), "Is a directory");
}

TEST_F(StoreTest, NamesTheRowThatMakesNoSense) {
  const Instance instance = make_instance("vm-1");
  const Forward forward = make_forward(instance, 20000);
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forward(forward)));
    EXPECT_TRUE(test::run(store->add_api_key(make_key(Role::kTenant, 1))));
  }
  const std::string id = to_string(forward.id);
  const auto edited_forward = [&](const std::string& set) {
    edit(
        "UPDATE forwards SET host_port = 20000, guest_port = 3000, instance_id = 'vm-1', label = '', "
        "session_id = id");
    edit("UPDATE forwards SET " + set);
    return open_store()->load_forwards();
  };
  expect_unavailable(edited_forward("host_port = 65536"), path(),
                     id + "\" makes no sense: host_port \"65536\"");
  expect_unavailable(edited_forward("guest_port = 0"), path(), "guest_port \"0\" is not 1 to 65535");
  expect_unavailable(edited_forward("session_id = 'x'"), path(), "session_id \"x\" is not a UUID");
  expect_unavailable(edited_forward("label = char(10)"), path(), "label has a control character");
  expect_unavailable(edited_forward("instance_id = 'vm-2'"), path(), "instance_id \"vm-2\" is no instance");
  expect_unavailable(edited_forward("id = 'f'"), path(), "the row with id \"f\"");

  const auto edited_instance = [&](const std::string& set) {
    edit(
        "UPDATE instances SET guest_address = '198.18.0.2', state = 'running', tap = 'tap0', vmm_pid = NULL, "
        "guest_address_v6 = NULL");
    edit("UPDATE instances SET " + set);
    return open_store()->load_instances();
  };
  expect_unavailable(edited_instance("guest_address = 'localhost'"), path(), "\"localhost\" is not an IP");
  expect_unavailable(edited_instance("guest_address_v6 = '198.18.0.3'"), path(), "is not an IPv6 address");
  expect_unavailable(edited_instance("guest_address = 'fd00::2', guest_address_v6 = 'fd00::3'"), path(),
                     "beside an IPv4 one");
  expect_unavailable(edited_instance("state = 'idle'"), path(), "state \"idle\" is neither");
  expect_unavailable(edited_instance("vmm_pid = -1"), path(), "vmm_pid \"-1\"");
  expect_unavailable(edited_instance("tap = 'a/b'"), path(), "tap \"a/b\" must be");
  expect_unavailable(edited_instance("created_at = -1"), path(), "created_at \"-1\"");

  edit("UPDATE api_keys SET role = 'root'");
  expect_unavailable(open_store()->load_api_keys(), path(), "role \"root\" is neither");
  edit("UPDATE api_keys SET role = 'admin', secret_sha256 = x'00'");
  expect_unavailable(open_store()->load_api_keys(), path(), "is not a SHA-256");
  const auto edited_key = [&](const std::string& set) {
    edit(
        "UPDATE api_keys SET role = 'tenant', scope = 'full', instance_id = '', description = '', "
        "secret_sha256 = zeroblob(32), old_secret_sha256 = NULL, old_secret_until = NULL, expires_at = NULL");
    edit("UPDATE api_keys SET " + set);
    return open_store()->load_api_keys();
  };
  expect_unavailable(edited_key("scope = 'all'"), path(), "scope \"all\" is none of");
  expect_unavailable(edited_key("scope = 'metrics'"), path(), "scope metrics needs role admin");
  expect_unavailable(edited_key("role = 'admin', instance_id = 'vm-1'"), path(), "sees every instance");
  expect_unavailable(edited_key("instance_id = 'a/b'"), path(), "instance_id \"a/b\" must be");
  expect_unavailable(edited_key("description = char(10)"), path(), "control character");
  expect_unavailable(edited_key("expires_at = -1"), path(), "expires_at \"-1\"");
  expect_unavailable(edited_key("old_secret_sha256 = x'00', old_secret_until = 1"), path(),
                     "is not a SHA-256");
}

TEST_F(StoreTest, RefusesAReadOnlyDirectoryWithTheRemedy) {
  fs::permissions(directory_, fs::perms::owner_read | fs::perms::owner_exec | fs::perms::others_all);
  fs::permissions(directory_, fs::perms::others_write, fs::perm_options::remove);
  // Root may write anywhere, so this thread takes user nobody for file access.
  constexpr uid_t kNobody = 65534;
  const auto before = static_cast<uid_t>(setfsuid(kNobody));
  const auto refused = open();
  const auto refused_below = Store::open(directory_ / "deeper" / "portway.db");
  setfsuid(before);
  expect_unavailable(refused, path(), "Permission denied");
  expect_unavailable(refused_below, "deeper", "or set store.path to another place");
  fs::permissions(directory_, fs::perms::owner_all);
  EXPECT_TRUE(open());
}

TEST_F(StoreTest, AFailingDiskChangesNothingAndTheNextCallWorksOnceItIsWell) {
  const auto store = open_store();
  const Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
  // One more page for each try: the write fails at every point where it can, until it goes through.
  constexpr rlim_t kPage = 4096;
  int refusals = 0;
  for (rlim_t limit = fs::file_size(path() + "-wal"); refusals < 100; limit += kPage / 2, ++refusals) {
    const std::vector<Forward> forwards{make_forward(instance, 20001), make_forward(instance, 20002)};
    const auto added = [&] {
      const FileSizeLimit until_end_of_scope(limit);
      return test::run(store->add_forwards(forwards));
    }();
    if (added) break;
    expect_unavailable(added, path(), "look for the disk's errors");
    EXPECT_THAT(host_ports(*store), SizeIs(1)) << limit;
  }
  EXPECT_GT(refusals, 1);
  EXPECT_LT(refusals, 100);
  EXPECT_THAT(host_ports(*store), testing::UnorderedElementsAre(20000, 20001, 20002));
}

TEST_F(StoreTest, AFullDiskChangesNothingAndTheNextCallWorksOnceThereIsRoom) {
  PORTWAY_NEEDS(geteuid() == 0 ? "" : "mounting a small filesystem needs root: run the tests with sudo");
  mount_small_filesystem();
  {
    const auto store = open_store();
    const Instance instance = make_instance("vm-1");
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    const fs::path filler = directory_ / "filler";
    std::ofstream(filler) << std::string(1 << 20, 'x');

    std::size_t added = 0;
    Result<void> refused;
    while ((refused = test::run(
                store->add_forward(make_forward(instance, static_cast<std::uint16_t>(20000 + added)))))) {
      ASSERT_LT(++added, 1000U);
    }
    expect_unavailable(refused, path(), "free space on its filesystem");
    EXPECT_THAT(host_ports(*store), SizeIs(added));
    fs::remove(filler);
    EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 30000))));
    EXPECT_THAT(host_ports(*store), SizeIs(added + 1));
  }
  EXPECT_EQ(umount(directory_.c_str()), 0);
}

TEST_F(StoreTest, RefusesChangesWhileAnotherProgramKeepsTheFileLocked) {
  const auto store = open_store();
  SQLite::Database shell(path(), SQLite::OPEN_READWRITE);
  shell.exec("BEGIN IMMEDIATE");
  expect_unavailable(test::run(store->put_instance(make_instance("vm-1"))), path(),
                     "another program is writing");
  shell.exec("ROLLBACK");
  EXPECT_TRUE(test::run(store->put_instance(make_instance("vm-1"))));
}

// --- Its files go under it.

constexpr std::size_t kWalHeader = 32;
constexpr std::size_t kWalFrame = 24 + 4096;

/// What SQLite and the store make beside each other.
const std::array<std::string, 4> kFiles = {"", "-wal", "-shm", ".lock"};

std::vector<std::string> errors_of(Store& store) {
  std::vector<std::string> texts;
  for (const auto& notice : store.take_notices()) {
    if (notice.is_error) texts.push_back(notice.text);
  }
  return texts;
}

std::vector<std::string> notices_of(Store& store) {
  std::vector<std::string> texts;
  for (const auto& notice : store.take_notices()) texts.push_back(notice.text);
  return texts;
}

/// A copy of the files as they are now, as a crash would leave them, opened as another store.
std::unique_ptr<Store> open_copy(const std::string& path, const fs::path& to) {
  fs::create_directory(to);
  for (const char* suffix : {"", "-wal", "-shm"}) {
    if (fs::exists(path + suffix)) fs::copy(path + suffix, to / ("portway.db" + std::string(suffix)));
  }
  return Store::open(to / "portway.db").value();
}

TEST_F(StoreTest, FilesThatAreDeletedMeanwhileAreWrittenAgainBeforeTheNextChange) {
  int round = 0;
  // Each alone, and all but one: the bits are those that go.
  for (const unsigned gone : {1U, 2U, 4U, 8U, 3U, 6U, 7U, 14U, 15U}) {
    SCOPED_TRACE(gone);
    const auto store = open_store();
    const Instance instance = make_instance("vm-" + std::to_string(gone));
    const auto port = static_cast<std::uint16_t>(20000 + 10 * gone);
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, port))));
    for (unsigned file = 0; file < kFiles.size(); ++file) {
      if ((gone >> file & 1) != 0) fs::remove(path() + kFiles[file]);
    }
    EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, static_cast<std::uint16_t>(port + 1)))));
    const auto notices = notices_of(*store);
    if (gone == 8) {
      EXPECT_THAT(notices, IsEmpty()) << "a lock is all that there was";
    } else {
      EXPECT_THAT(notices, ElementsAre(HasSubstr("written again")));
    }
    for (const std::string& suffix : kFiles) {
      EXPECT_TRUE(fs::exists(path() + suffix)) << suffix;
      EXPECT_EQ(mode_of(path() + suffix), 0600) << suffix;
    }
    EXPECT_FALSE(fs::exists(path() + ".new"));
    expect_unavailable(open(), path(), "another portwayd has it open");

    EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, static_cast<std::uint16_t>(port + 2)))));
    EXPECT_THAT(notices_of(*store), IsEmpty());
    const auto restarted = open_copy(path(), directory_ / std::to_string(gone));
    EXPECT_THAT(host_ports(*restarted), SizeIs(3U * static_cast<unsigned>(++round)));
    EXPECT_THAT(notices_of(*restarted), IsEmpty());
  }
}

TEST_F(StoreTest, ACheckForMissingFilesWritesThemAgain) {
  const auto store = open_store();
  const Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  fs::remove_all(directory_);
  store->look_after_files();
  EXPECT_THAT(store->load_instances().value(), SizeIs(1)) << "comes after it";
  EXPECT_TRUE(fs::exists(path()));
  EXPECT_EQ(store->fault(), "");
  EXPECT_THAT(open_copy(path(), directory_ / "copy")->load_instances().value(), SizeIs(1));
}

TEST_F(StoreTest, MovedFilesAreWrittenAgainWhereTheyWere) {
  auto store = open_store();
  const Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  const fs::path away = directory_.string() + ".away";
  fs::rename(directory_, away);
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
  store.reset();
  EXPECT_THAT(host_ports(*open_store()), ElementsAre(20000));
  EXPECT_TRUE(fs::exists(away / "portway.db-wal")) << "not this store's any more";
  fs::remove_all(away);
}

TEST_F(StoreTest, FilesThatAreGoneAtTheEndAreWrittenAgain) {
  EXPECT_TRUE(test::run(open_store()->put_instance(make_instance("vm-1"))));
  {
    const auto store = open_store();
    for (const std::string& suffix : kFiles) fs::remove(path() + suffix);
  }
  EXPECT_THAT(open_store()->load_instances().value(), SizeIs(1));
}

TEST_F(StoreTest, AFileThatTookItsPlaceIsNotOverwrittenAndChangesAreRefusedMeanwhile) {
  auto store = open_store();
  const Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  const fs::path backup = directory_ / "backup.db";
  SQLite::Database(path(), SQLite::OPEN_READONLY).exec("VACUUM INTO '" + backup.string() + "'");
  fs::rename(backup, path());
  const auto size = fs::file_size(path());

  expect_unavailable(test::run(store->add_forward(make_forward(instance, 20000))), path(),
                     "portway.db is another file now");
  expect_unavailable(test::run(store->add_forward(make_forward(instance, 20000))), path(),
                     "move that one away");
  EXPECT_THAT(store->fault(), HasSubstr("portway.db is another file now"));
  EXPECT_THAT(errors_of(*store), SizeIs(1)) << "said once";
  EXPECT_EQ(fs::file_size(path()), size);

  fs::rename(path(), backup);
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
  EXPECT_EQ(store->fault(), "");
  store.reset();
  EXPECT_THAT(host_ports(*open_store()), ElementsAre(20000));
}

TEST_F(StoreTest, IfFilesCannotBeWrittenAgainChangesAreRefusedUntilTheyCan) {
  PORTWAY_NEEDS(geteuid() == 0 ? "" : "mounting a small filesystem needs root: run the tests with sudo");
  mount_small_filesystem();
  {
    const auto store = open_store();
    const Instance instance = make_instance("vm-1");
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    const auto in_memory = [&] { return store->load_instances().value().size(); };

    fs::remove(path());
    const fs::path filler = directory_ / "filler";
    std::ofstream(filler) << std::string(1 << 20, 'x');
    expect_unavailable(test::run(store->add_forward(make_forward(instance, 20000))), path(), "free space");
    EXPECT_THAT(store->fault(), HasSubstr("portway.db is gone"));
    EXPECT_EQ(in_memory(), 1U);
    fs::remove(filler);
    EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20000))));
    EXPECT_EQ(store->fault(), "");
    EXPECT_THAT(host_ports(*open_copy(path(), directory_ / "copy")), ElementsAre(20000));
  }
  EXPECT_EQ(umount(directory_.c_str()), 0);
}

TEST_F(StoreTest, SaysThatItsLogCannotBeCopiedIntoIt) {
  const Instance instance = make_instance("vm-1");
  std::uint16_t port = 0;
  const auto more = [&](int count) {
    std::vector<Forward> forwards;
    for (int i = 0; i < count; ++i) forwards.push_back(make_forward(instance, ++port));
    return forwards;
  };
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    EXPECT_TRUE(test::run(store->add_forwards(more(30'000))));
  }
  const auto store = open_store();
  {
    const FileSizeLimit until_end_of_scope(fs::file_size(path()));  // enough for the log
    while (fs::file_size(path() + "-wal") < 1100 * kWalFrame)
      EXPECT_TRUE(test::run(store->add_forwards(more(200))));
  }
  EXPECT_THAT(errors_of(*store), ElementsAre(HasSubstr("cannot be copied into it"))) << "said once";
  EXPECT_TRUE(test::run(store->add_forwards(more(10))));
  EXPECT_THAT(notices_of(*store), IsEmpty());
  EXPECT_THAT(host_ports(*open_copy(path(), directory_ / "copy")), SizeIs(port));
}

TEST_F(StoreTest, SaysThatItsFileHasAnotherName) {
  EXPECT_TRUE(test::run(open_store()->put_instance(make_instance("vm-1"))));
  fs::create_hard_link(path(), directory_ / "link.db");
  EXPECT_THAT(notices_of(*open_store()), ElementsAre(HasSubstr("2 names")));
}

// --- Its log is damaged.

class StoreLogTest : public StoreTest {
 protected:
  /// What a killed daemon leaves after it acknowledged some changes.
  void leave_log(int changes) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      auto store = Store::open(path());
      for (int i = 0; i < changes; ++i)
        (void)test::run((*store)->put_instance(make_instance("vm-" + std::to_string(i))));
      _exit(0);  // without the store's end
    }
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_EQ(status, 0);
  }
  std::string wal() const { return path() + "-wal"; }
  std::size_t frames() const { return (fs::file_size(wal()) - kWalHeader) / kWalFrame; }
  void flip(std::size_t offset) const {
    std::fstream file(wal(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(static_cast<std::streamoff>(offset));
    const int byte = file.get();
    file.seekp(static_cast<std::streamoff>(offset));
    file.put(static_cast<char>(byte ^ 1));
  }
};

TEST_F(StoreLogTest, AKilledDaemonsLogIsNoDamage) {
  leave_log(5);
  const auto store = open_store();
  EXPECT_THAT(store->load_instances().value(), SizeIs(5));
  EXPECT_THAT(notices_of(*store), IsEmpty());
}

TEST_F(StoreLogTest, ALogThatLostWhatWasAcknowledgedIsReported) {
  struct Case {
    const char* what;
    bool index_survives;
    std::function<void()> damage;
  };
  const auto at_frame = [](std::size_t frame) { return kWalHeader + frame * kWalFrame; };
  const std::array cases{
      Case{"a bit in a page of the middle", true, [&] { flip(at_frame(frames() / 2) + 1000); }},
      Case{"the same after a reboot", false, [&] { flip(at_frame(frames() / 2) + 1000); }},
      Case{"a bit in a frame's header", false, [&] { flip(at_frame(frames() / 2) + 17); }},
      Case{"a bit of the last frame", true, [&] { flip(at_frame(frames() - 1) + 1000); }},
      Case{"its end is cut off", true, [&] { fs::resize_file(wal(), at_frame(frames() - 2)); }},
      Case{"its header", true, [&] { flip(3); }},
      Case{"its header, after a reboot", false, [&] { flip(20); }},
      Case{"it is empty", true, [&] { fs::resize_file(wal(), 0); }},
      Case{"it is deleted", true, [&] { fs::remove(wal()); }},
  };
  for (const Case& each : cases) {
    SCOPED_TRACE(each.what);
    fs::remove_all(directory_);
    fs::create_directory(directory_);
    leave_log(6);
    each.damage();
    if (!each.index_survives) fs::remove(path() + "-shm");
    const auto store = open_store();
    EXPECT_LT(store->load_instances().value().size(), 6U);
    EXPECT_THAT(errors_of(*store), ElementsAre(AllOf(HasSubstr(wal()), HasSubstr("is lost"))));
    EXPECT_TRUE(test::run(store->put_instance(make_instance("vm-9")))) << "continues";
  }
}

// A transaction of several pages that was not acknowledged is cut off in the middle, or its pages reach the
// disk in another order.
TEST_F(StoreLogTest, ALastTransactionThatWasNotAcknowledgedIsNoDamage) {
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(make_instance("vm-1"))));
    std::vector<Forward> forwards;
    for (std::uint16_t port = 1; port <= 200; ++port)
      forwards.push_back(make_forward(make_instance("vm-1"), port));
    // The log at this moment, and after a transaction that the index does not know.
    fs::create_directory(directory_ / "before");
    for (const char* suffix : {"", "-wal", "-shm"}) {
      fs::copy(path() + suffix, directory_ / "before" / ("portway.db" + std::string(suffix)));
    }
    EXPECT_TRUE(test::run(store->add_forwards(forwards)));
    fs::copy(wal(), directory_ / "after-wal");
  }
  const fs::path before = directory_ / "before";
  const std::size_t first = (fs::file_size(before / "portway.db-wal") - kWalHeader) / kWalFrame;
  const std::size_t last = (fs::file_size(directory_ / "after-wal") - kWalHeader) / kWalFrame;
  ASSERT_GT(last, first + 5);
  for (std::size_t missing = first; missing < last; ++missing) {
    for (const bool reordered : {false, true}) {
      for (const bool rebooted : {false, true}) {
        const fs::path crashed = directory_ / "crashed";
        fs::remove_all(crashed);
        fs::copy(before, crashed);
        const fs::path log = crashed / "portway.db-wal";
        fs::copy_file(directory_ / "after-wal", log, fs::copy_options::overwrite_existing);
        if (rebooted) fs::remove(crashed / "portway.db-shm");
        if (reordered) {
          std::fstream(log, std::ios::in | std::ios::out | std::ios::binary)
              .seekp(static_cast<std::streamoff>(kWalHeader + missing * kWalFrame))
              .write(std::string(kWalFrame, '\0').data(), kWalFrame);
        } else {
          fs::resize_file(log, kWalHeader + missing * kWalFrame + kWalFrame / 2);
        }
        const auto store = Store::open(crashed / "portway.db").value();
        EXPECT_THAT(host_ports(*store), IsEmpty());
        EXPECT_THAT(notices_of(*store), IsEmpty()) << missing << " " << reordered << " " << rebooted;
      }
    }
  }
}

// A transaction that failed leaves pages in the log, which later ones overwrite in part.
TEST_F(StoreLogTest, WhatFailedTransactionsLeftInItIsNoDamage) {
  const Instance instance = make_instance("vm-1");
  std::uint16_t port = 20000;
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const auto store = open_store();
    (void)test::run(store->put_instance(instance));
    for (int pages = 30; pages > 0; pages -= 3) {
      std::vector<Forward> many;
      for (int i = 0; i < 100 * pages; ++i) many.push_back(make_forward(instance, ++port));
      const FileSizeLimit until_end_of_scope(fs::file_size(wal()) + static_cast<rlim_t>(pages) * kWalFrame);
      (void)test::run(store->add_forwards(many));
      (void)test::run(store->put_instance(make_instance("vm-2")));
    }
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_EQ(status, 0);
  for (const bool rebooted : {false, true}) {
    const fs::path copy = directory_ / (rebooted ? "rebooted" : "killed");
    fs::create_directory(copy);
    fs::copy(path(), copy / "portway.db");
    fs::copy(wal(), copy / "portway.db-wal");
    if (!rebooted) fs::copy(path() + "-shm", copy / "portway.db-shm");
    EXPECT_THAT(notices_of(*Store::open(copy / "portway.db").value()), IsEmpty()) << rebooted;
  }
}

/// Adds forwards until it is killed, and reports each one that was acknowledged.
[[noreturn]] void add_forwards_forever(const std::string& path, const Instance& instance, int acknowledge) {
  auto store = Store::open(path);
  if (!store || !test::run((*store)->put_instance(instance))) _exit(1);
  for (std::uint16_t port = 1; port < 65535; ++port) {
    if (!test::run((*store)->add_forward(make_forward(instance, port)))) _exit(2);
    if (write(acknowledge, &port, sizeof port) != sizeof port) _exit(3);
  }
  _exit(4);
}

TEST_F(StoreTest, WhatWasAcknowledgedSurvivesKillMinusNine) {
  for (const std::size_t kill_after : {1, 20, 60, 100, 150}) {
    fs::remove_all(directory_);
    fs::create_directory(directory_);
    const Instance instance = make_instance("vm-1");
    std::array<int, 2> pipe_ends{};
    ASSERT_EQ(pipe(pipe_ends.data()), 0);
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      close(pipe_ends[0]);
      add_forwards_forever(path(), instance, pipe_ends[1]);
    }
    close(pipe_ends[1]);
    std::vector<std::uint16_t> acknowledged;
    std::uint16_t port = 0;
    while (read(pipe_ends[0], &port, sizeof port) == sizeof port) {
      acknowledged.push_back(port);
      if (acknowledged.size() == kill_after) kill(child, SIGKILL);
    }
    close(pipe_ends[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status)) << WEXITSTATUS(status);

    const auto store = open_store();
    const std::vector<std::uint16_t> stored = host_ports(*store);
    // One more may be there: committed, but killed before it could report it.
    EXPECT_LE(stored.size(), acknowledged.size() + 1);
    ASSERT_GE(stored.size(), acknowledged.size());
    EXPECT_TRUE(std::equal(acknowledged.begin(), acknowledged.end(), stored.begin()));
    EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 65535))));
  }
}

TEST_F(StoreTest, LoadsTenThousandForwards) {
  constexpr std::uint16_t kForwards = 10'000;
  const Instance instance = make_instance("vm-1");
  {
    const auto store = open_store();
    EXPECT_TRUE(test::run(store->put_instance(instance)));
    std::vector<Forward> forwards;
    for (std::uint16_t port = 1; port <= kForwards; ++port) forwards.push_back(make_forward(instance, port));
    EXPECT_TRUE(test::run(store->add_forwards(forwards)));
  }
  const auto started = std::chrono::steady_clock::now();
  EXPECT_THAT(open_store()->load_forwards().value(), SizeIs(kForwards));
  const auto took = std::chrono::steady_clock::now() - started;
  RecordProperty("milliseconds",
                 std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(took).count()));
}

// --- Its thread.

/// Another program that holds a lock on the file.
class Locked {
 public:
  explicit Locked(const std::string& path) : database_(path, SQLite::OPEN_READWRITE) {
    database_.exec("BEGIN IMMEDIATE");
  }

 private:
  SQLite::Database database_;
};

TEST_F(StoreTest, ItsThreadIsNotTheOneThatWaitsForTheDisk) {
  boost::asio::io_context context;  // outlives the store's thread
  const auto store = open_store();
  auto locked = std::make_unique<Locked>(path());
  // The change succeeds only because of what is done meanwhile.
  EXPECT_TRUE(test::run(context, store->put_instance(make_instance("vm-1")), [&] { locked.reset(); }));
}

/// Calls `done` with the result of `change`, later.
template <class Value>
void ask(boost::asio::io_context& context, Change<Value> change, std::vector<bool>& results) {
  boost::asio::co_spawn(
      context,
      [&results, change = std::move(change)]() mutable -> boost::asio::awaitable<void> {
        results.push_back(static_cast<bool>(co_await std::move(change)));
      },
      boost::asio::detached);
}

TEST_F(StoreTest, WhatIsAskedForWhileTheDiskIsBusyIsCommittedTogether) {
  boost::asio::io_context context;  // outlives the store's thread
  const auto store = open_store();
  const Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  auto locked = std::make_unique<Locked>(path());
  std::vector<bool> results;
  ask(context, store->put_instance(make_instance("vm-2")), results);  // waits for the lock
  context.poll();
  for (std::uint16_t port = 20000; port < 20100; ++port) {
    ask(context, store->add_forward(make_forward(instance, static_cast<std::uint16_t>(port))), results);
  }
  context.poll();
  locked.reset();
  context.run();
  EXPECT_EQ(results, std::vector<bool>(101, true));
  EXPECT_EQ(host_ports(*store).size(), 100U);
}

// One that contradicts what is stored must not take its neighbours with it.
TEST_F(StoreTest, AChangeThatIsRefusedDoesNotRefuseThoseThatItIsCommittedWith) {
  boost::asio::io_context context;  // outlives the store's thread
  const auto store = open_store();
  const Instance instance = make_instance("vm-1");
  EXPECT_TRUE(test::run(store->put_instance(instance)));
  EXPECT_TRUE(test::run(store->add_forward(make_forward(instance, 20001))));
  auto locked = std::make_unique<Locked>(path());
  std::vector<bool> results;
  ask(context, store->put_instance(instance), results);  // waits for the lock
  context.poll();
  for (const int port : {20000, 20001, 20002}) {
    ask(context, store->add_forward(make_forward(instance, static_cast<std::uint16_t>(port))), results);
  }
  context.poll();
  locked.reset();
  context.run();
  EXPECT_THAT(results, ElementsAre(true, true, false, true));
  EXPECT_THAT(host_ports(*store), testing::UnorderedElementsAre(20000, 20001, 20002));
}

TEST_F(StoreTest, SavesManySessionsInOneTransactionWithoutMakingAnybodyWait) {
  const auto store = open_store();
  Instance running = make_instance("vm-1");
  Instance stopped = make_instance("vm-2");
  const Forward kept = make_forward(running, 20001);
  const Forward gone = make_forward(stopped, 20002);
  for (const Instance& each : {running, stopped}) EXPECT_TRUE(test::run(store->put_instance(each)));
  for (const Forward& each : {kept, gone}) EXPECT_TRUE(test::run(store->add_forward(each)));
  running.tap_index = 7;
  stopped.state = InstanceState::kStopped;
  stopped.ended = SessionEnd::kCarrierLost;

  std::promise<Result<void>> first;
  auto locked = std::make_unique<Locked>(path());
  store->save_sessions({running, stopped}, [&](Result<void> saved) { first.set_value(std::move(saved)); });
  expect_unavailable(first.get_future().get(), path(), "another program is writing to it");
  locked.reset();
  EXPECT_THAT(host_ports(*store), ElementsAre(20001, 20002)) << "all of them or none";

  std::promise<Result<void>> second;
  store->save_sessions({running, stopped}, [&](Result<void> saved) { second.set_value(std::move(saved)); });
  EXPECT_THAT(host_ports(*store), ElementsAre(20001)) << "a later call comes later";
  EXPECT_TRUE(second.get_future().get());
  const auto instances = store->load_instances().value();
  expect_equal(instances[0], running);
  expect_equal(instances[1], stopped);
}

TEST_F(StoreTest, DoesWhatWasRequestedBeforeItEnds) {
  bool saved = false;
  {
    const auto store = open_store();
    for (int i = 0; i < 10; ++i) {
      store->save_sessions({make_instance("vm-" + std::to_string(i))},
                           [&](const Result<void>& done) { saved = static_cast<bool>(done); });
    }
  }
  EXPECT_TRUE(saved);
  EXPECT_THAT(open_store()->load_instances().value(), SizeIs(10));
}

// A read-only filesystem at start, and a full one: forwards are served all the same.
class UnwritableStoreTest : public StoreTest, public testing::WithParamInterface<bool> {
 protected:
  void SetUp() override {
    PORTWAY_NEEDS(geteuid() == 0 ? "" : "mounting a small filesystem needs root: run the tests with sudo");
    mount_small_filesystem();
    const auto store = open_store();
    instance_ = make_instance("vm-1");
    EXPECT_TRUE(test::run(store->put_instance(instance_)));
    EXPECT_TRUE(test::run(store->add_forward(make_forward(instance_, 20000))));
    // Its -wal stays, as after a crash: what it has is not in the database.
    fs::copy(path(), directory_ / "as-it-was");
    fs::copy(path() + "-wal", directory_ / "as-it-was-wal");
  }
  void TearDown() override { umount2(directory_.c_str(), MNT_DETACH); }

  void put_back() const {
    fs::rename(directory_ / "as-it-was", path());
    fs::rename(directory_ / "as-it-was-wal", path() + "-wal");
  }
  void set_writable(bool writable) {
    const bool full = GetParam();
    if (!full) {
      EXPECT_EQ(mount("", directory_.c_str(), "", MS_REMOUNT | (writable ? 0 : MS_RDONLY), "size=512k"), 0);
    } else if (writable) {
      fs::remove(directory_ / "filler");
    } else {
      std::ofstream(directory_ / "filler") << std::string(1 << 20, 'x');
    }
  }
  /// It tries again every kAskAgain.
  static void look_until(Store& store, const std::function<bool()>& holds) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    do {
      store.look_after_files();
      (void)store.load_instances();  // comes after it
      ASSERT_LT(std::chrono::steady_clock::now(), deadline) << store.fault();
    } while (!holds());
  }
  std::string remedy() const { return GetParam() ? "free space" : "mount its filesystem writable"; }

  Instance instance_;
};
INSTANTIATE_TEST_SUITE_P(ReadOnlyOrFull, UnwritableStoreTest, testing::Bool());

TEST_P(UnwritableStoreTest, ServesWhatItHasAndAcceptsChangesOnceItCanBeWritten) {
  put_back();
  set_writable(false);
  {
    auto opened = open();
    ASSERT_TRUE(opened) << opened.error().detail;
    Store& store = **opened;
    EXPECT_THAT(host_ports(store), testing::ElementsAre(20000));
    EXPECT_THAT(notices_of(store), ElementsAre(AllOf(HasSubstr(remedy()), HasSubstr("served from memory"))));
    expect_unavailable(store.writable(), path(), remedy());
    for (int i = 0; i < 2; ++i) {
      expect_unavailable(test::run(store.add_forward(make_forward(instance_, 20001))), path(), remedy());
    }
    expect_unavailable(test::run(store.delete_instance("vm-1")), path(), remedy());
    EXPECT_THAT(host_ports(store), testing::ElementsAre(20000));

    set_writable(true);
    look_until(store, [&] { return store.fault().empty(); });
    EXPECT_THAT(notices_of(store), ElementsAre(HasSubstr("changes are accepted")));
    EXPECT_TRUE(test::run(store.add_forward(make_forward(instance_, 20002))));
    EXPECT_TRUE(store.writable());
  }
  EXPECT_THAT(host_ports(*open_store()), testing::ElementsAre(20000, 20002));
}

TEST_P(UnwritableStoreTest, AnUpgradeGoesOnWithTheCopy) {
  put_back();
  set_writable(false);
  const auto predecessor = open();
  ASSERT_TRUE(predecessor);
  (*predecessor)->suspend();
  const auto successor = open();
  ASSERT_TRUE(successor);
  EXPECT_THAT(host_ports(**successor), testing::ElementsAre(20000));
  EXPECT_TRUE((*predecessor)->resume());
  EXPECT_THAT(host_ports(**predecessor), testing::ElementsAre(20000));
}

TEST_P(UnwritableStoreTest, ContentThatCameMeanwhileIsNotMixedWithWhatItServes) {
  put_back();
  set_writable(false);
  const auto store = open();
  ASSERT_TRUE(store);
  (void)(*store)->take_notices();
  set_writable(true);
  {
    SQLite::Database shell(path(), SQLite::OPEN_READWRITE);
    shell.exec("UPDATE forwards SET host_port = 20009");
  }
  look_until(**store, [&] { return (*store)->fault().find("other content") != std::string::npos; });
  expect_unavailable(test::run((*store)->add_forward(make_forward(instance_, 20001))), path(), "restart it");
  EXPECT_THAT(host_ports(**store), testing::ElementsAre(20000));
}

TEST_P(UnwritableStoreTest, WithoutContentItIsNotOpened) {
  for (const char* name : {"portway.db", "portway.db-wal", "as-it-was", "as-it-was-wal"})
    fs::remove(directory_ / name);
  set_writable(false);
  expect_unavailable(open(), path(), remedy());
}

}  // namespace
}  // namespace portway
