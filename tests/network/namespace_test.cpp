// Opens real namespaces, as `ip netns` makes them, and makes sockets in them.
#include "network/namespace.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <linux/capability.h>
#include <net/if.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/socket.h"
#include "tests/network/named_namespaces.h"
#include "tests/support/capabilities.h"
#include "tests/support/network.h"
#include "tests/support/process.h"
#include "tests/support/requirements.h"

namespace portway {
namespace {

using test::check;
using test::run_command;

std::string namespace_of_this_thread() {
  return std::filesystem::read_symlink("/proc/thread-self/ns/net");
}

std::size_t open_descriptors() {
  std::size_t count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) ++count;
  return count;
}

class NetworkNamespaceTest : public test::NamedNamespacesTest {
 protected:
  /// That it is refused as a mistake of the request's, in these words.
  void expect_invalid(const std::string& path, const std::string& words) const {
    const auto opened = open(path);
    ASSERT_FALSE(opened) << path;
    EXPECT_EQ(opened.error().code, ErrorCode::kInvalidRequest) << path;
    EXPECT_EQ(opened.error().field, "netns") << path;
    EXPECT_NE(opened.error().detail.find(words), std::string::npos) << path << ": " << opened.error().detail;
  }
};

// --- What can be opened.

TEST_F(NetworkNamespaceTest, IsOpenedByAPathBelowOneOfTheDirectories) {
  make("guest");
  EXPECT_TRUE(open("/run/netns/guest"));
  EXPECT_TRUE(open("/run//netns/./guest"));
  EXPECT_TRUE(open("/var/run/netns/guest"));
  directories_ = {"/var/run/netns/"};
  EXPECT_TRUE(open("/run/netns/guest"));
  directories_ = {"/elsewhere", "/run"};
  EXPECT_TRUE(open("/run/netns/guest"));
}

TEST_F(NetworkNamespaceTest, IsOneObjectAndOneDescriptorHoweverOftenItIsOpened) {
  make("guest");
  make("other");
  const auto first = open_named("guest");
  const std::size_t descriptors = open_descriptors();
  EXPECT_EQ(open_named("guest"), first);
  EXPECT_EQ(open("/var/run/netns/guest").value(), first);
  EXPECT_EQ(open_descriptors(), descriptors);
  EXPECT_NE(open_named("other"), first);
  EXPECT_EQ(open_descriptors(), descriptors);
}

TEST_F(NetworkNamespaceTest, IsIdentifiedByMoreThanItsFile) {
  make("guest");
  const NamespaceIdentity first = open_named("guest")->identity();
  EXPECT_EQ(open_named("guest")->identity(), first);
  make("other");
  EXPECT_FALSE(open_named("other")->identity() == first);
  // The kernel gives the same inode to the next namespace.
  const NamespaceIdentity same_file{.cookie = first.cookie + 1, .device = first.device, .inode = first.inode};
  EXPECT_FALSE(same_file == first);
  const NamespaceIdentity no_cookie{.cookie = 0, .device = first.device, .inode = first.inode};
  EXPECT_EQ(no_cookie, first);
}

TEST_F(NetworkNamespaceTest, IsOpenedByItsProcess) {
  make("guest");
  const auto named = open_named("guest");
  test::Process process(
      {.command = {"ip", "netns", "exec", "guest", "sh", "-c", "echo runs; exec sleep 100"}});
  ASSERT_TRUE(process.wait_for_output("runs", std::chrono::seconds(10)));
  EXPECT_EQ(NetworkNamespace::open_of_process(process.pid(), [] { return true; }).value(), named);

  const auto other = NetworkNamespace::open_of_process(process.pid(), [] { return false; });
  ASSERT_FALSE(other);
  EXPECT_EQ(other.error().field, "netns");
  EXPECT_NE(other.error().detail.find("has ended"), std::string::npos) << other.error().detail;

  process.signal(SIGKILL);
  process.wait(std::chrono::seconds(10));
  const auto gone = NetworkNamespace::open_of_process(process.pid(), [] { return true; });
  ASSERT_FALSE(gone);
  EXPECT_NE(gone.error().detail.find("There is no process"), std::string::npos) << gone.error().detail;

  const auto own = NetworkNamespace::open_of_process(::getpid(), [] { return true; });
  ASSERT_FALSE(own);
  EXPECT_NE(own.error().detail.find("the node's own"), std::string::npos) << own.error().detail;
}

// --- What is refused.

TEST_F(NetworkNamespaceTest, IsRefusedOutsideOfTheDirectories) {
  make("guest");
  ::mkdir("/run/netns2", 0755);
  for (const char* path : {"/etc/passwd", "/run/netns2/guest", "/run/netns", "/run/netns/", "/run/netns/."}) {
    expect_invalid(path, "is below none of guests.netns_directories (/run/netns)");
  }
  expect_invalid("run/netns/guest", "is no absolute path");
  expect_invalid("", "is no absolute path");
  expect_invalid("/run/netns/" + std::string(5000, 'x'), "is no absolute path");
  expect_invalid(std::string("/run/netns/guest\0x", 18), "is no absolute path");
  expect_invalid("/run/netns/../netns/guest", "contains \"..\"");
  directories_.clear();
  expect_invalid("/run/netns/guest", "guests.netns_directories (none)");
}

TEST_F(NetworkNamespaceTest, IsNotOpenedThroughASymbolicLink) {
  make("guest");
  std::filesystem::create_symlink("/run/netns/guest", "/run/netns/link");
  std::filesystem::create_directory_symlink("/run/netns", "/run/netns/directory");
  std::filesystem::create_symlink("/proc/1/ns/net", "/run/netns/process");
  std::filesystem::create_symlink("guest", "/run/netns/relative");
  for (const char* name : {"link", "directory/guest", "process", "relative"}) {
    expect_invalid(std::string("/run/netns/") + name, "leads through a symbolic link");
  }
}

TEST_F(NetworkNamespaceTest, IsRefusedIfItIsNotThere) {
  expect_invalid("/run/netns/guest", "There is no \"/run/netns/guest\"");  // nor the directory
  make("guest");
  expect_invalid("/run/netns/other", "There is no \"/run/netns/other\"");
  expect_invalid("/run/netns/guest/", "There is no");
  expect_invalid("/run/netns/guest/x", "There is no");
  expect_invalid("/run/netns/" + std::string(300, 'x'), "a component of more than 255 bytes");
}

TEST_F(NetworkNamespaceTest, IsNoOtherFile) {
  make("guest");
  ::mkdir("/run/netns/directory", 0755);
  ASSERT_EQ(::mkfifo("/run/netns/fifo", 0644), 0);
  ASSERT_EQ(::mknod("/run/netns/null", S_IFCHR | 0644, makedev(1, 3)), 0);
  std::ofstream("/run/netns/text") << "text";
  std::ofstream("/run/netns/empty") << "";
  const Fd socket(::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  const sockaddr_un address{.sun_family = AF_UNIX, .sun_path = "/run/netns/socket"};
  ASSERT_EQ(::bind(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address), 0);
  for (const char* name : {"directory", "fifo", "null", "text", "socket"}) {
    expect_invalid(std::string("/run/netns/") + name, "is no network namespace; give the path of one");
  }
  // What a namespace looks like whose mount is gone, or that was mounted out of the daemon's sight.
  expect_invalid("/run/netns/empty", "an empty file: no namespace is mounted there");
}

TEST_F(NetworkNamespaceTest, IsNoNamespaceOfAnotherKindNorTheNodesOwn) {
  make("guest");
  for (const auto& [file, words] : {std::pair("uts", "is a UTS namespace; give a network namespace"),
                                    {"mnt", "is a mount namespace"},
                                    {"user", "is a user namespace"},
                                    {"net", "is the node's own"}}) {
    const std::string path = std::string("/run/netns/") + file;
    std::ofstream(path) << "";
    if (::mount((std::string("/proc/self/ns/") + file).c_str(), path.c_str(), nullptr, MS_BIND, nullptr) !=
        0) {
      continue;  // a mount namespace cannot be mounted in itself
    }
    expect_invalid(path, words);
  }
}

/// What `function` returns while at most `more` descriptors can be opened.
template <class Function>
auto with_descriptors(int more, const Function& function) {
  rlimit before{};
  ::getrlimit(RLIMIT_NOFILE, &before);
  const int lowest = [] { return Fd(::fcntl(STDERR_FILENO, F_DUPFD_CLOEXEC, 0)).get(); }();
  rlimit few = before;
  few.rlim_cur = static_cast<rlim_t>(lowest) + static_cast<rlim_t>(more);
  ::setrlimit(RLIMIT_NOFILE, &few);
  auto result = function();
  ::setrlimit(RLIMIT_NOFILE, &before);
  return result;
}

// Each call that needs a descriptor fails in turn.
TEST_F(NetworkNamespaceTest, IsRefusedIfDescriptorsRunOut) {
  make("guest");
  const std::size_t descriptors = open_descriptors();
  std::thread([&] {  // has not entered a namespace yet
    for (int more = 0; more < 10; ++more) {
      const auto opened = with_descriptors(more, [&] { return open("/run/netns/guest"); });
      if (opened) {
        EXPECT_GE(more, 3);
        return;
      }
      EXPECT_EQ(opened.error().code, ErrorCode::kResourceExhausted);
      EXPECT_EQ(opened.error().field, "netns");
      EXPECT_NE(opened.error().detail.find("raise the limit of descriptors"), std::string::npos)
          << opened.error().detail;
    }
    ADD_FAILURE() << "never opened";
  })
      .join();
  EXPECT_EQ(open_descriptors(), descriptors);
}

TEST_F(NetworkNamespaceTest, IsRefusedWithoutTheCapability) {
  make("guest");
  const auto opened = open_named("guest");
  const std::string own = namespace_of_this_thread();
  make("other");
  std::thread([&] {
    test::drop_capabilities({CAP_SYS_ADMIN});
    const auto refused = open("/run/netns/other");
    ASSERT_FALSE(refused);
    EXPECT_EQ(refused.error().code, ErrorCode::kResourceExhausted);
    EXPECT_EQ(refused.error().field, "netns");
    EXPECT_NE(refused.error().detail.find("CAP_SYS_ADMIN"), std::string::npos) << refused.error().detail;
    EXPECT_EQ(opened->make_socket(AF_INET, SOCK_STREAM, 0), -EPERM);
    EXPECT_FALSE(opened->enter());
    EXPECT_EQ(namespace_of_this_thread(), own);
    expect_invalid("/etc/passwd", "is below none");  // mistakes are reported all the same
  }).join();
}

// --- Sockets.

/// Listens at an address that each namespace has, and sends `greeting` to whoever connects.
class Greeter {
 public:
  Greeter(const NetworkNamespace& network, char greeting) {
    run_command(nullptr, {"nsenter",
                          "--net=/proc/" + std::to_string(::getpid()) + "/fd/" + std::to_string(network.fd()),
                          "sh", "-c", "ip link set lo up && ip addr add 198.18.0.2/32 dev lo"});
    listener_.reset(network.make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    check(static_cast<bool>(listener_), "socket");
    const sockaddr_in address = where();
    check(::bind(listener_.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0, "bind");
    check(::listen(listener_.get(), 128) == 0, "listen");
    thread_ = std::thread([this, greeting] {
      for (;;) {
        const Fd client(::accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC));
        if (!client) return;
        (void)::send(client.get(), &greeting, 1, MSG_NOSIGNAL);
      }
    });
  }
  ~Greeter() {
    ::shutdown(listener_.get(), SHUT_RDWR);
    thread_.join();
  }
  Greeter(const Greeter&) = delete;
  Greeter& operator=(const Greeter&) = delete;

  static sockaddr_in where() {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(3000);
    ::inet_pton(AF_INET, "198.18.0.2", &address.sin_addr);
    return address;
  }
  /// What answers there, seen from a namespace.
  static char met_in(const NetworkNamespace& network) {
    const Fd socket(network.make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    const sockaddr_in address = where();
    char greeting = '?';
    if (::connect(socket.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) return '-';
    (void)::recv(socket.get(), &greeting, 1, 0);
    return greeting;
  }

 private:
  Fd listener_;
  std::thread thread_;
};

TEST_F(NetworkNamespaceTest, AnAddressOfManyNamespacesIsEachOnesOwn) {
  make("a");
  make("b");
  const auto a = open_named("a");
  const auto b = open_named("b");
  const Greeter in_a(*a, 'a');
  const Greeter in_b(*b, 'b');
  EXPECT_EQ(Greeter::met_in(*a), 'a');
  EXPECT_EQ(Greeter::met_in(*b), 'b');
  // On any thread.
  std::thread([&] { EXPECT_EQ(Greeter::met_in(*b), 'b'); }).join();
}

TEST_F(NetworkNamespaceTest, AThreadMayStayForMoreSockets) {
  make("a");
  make("b");
  auto a = open_named("a");
  const auto b = open_named("b");
  const std::string own = namespace_of_this_thread();
  NamespaceStay stay;
  for (const auto& each : {a, a, b, a}) {
    const Fd socket(stay.make_socket(each, AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(netns_cookie(socket.get()), each->identity().cookie);
  }
  EXPECT_EQ(stay.make_socket(a, AF_INET, 99, 0), -EINVAL);
  const std::string of_a = namespace_of_this_thread();
  EXPECT_NE(of_a, own);
  const Fd another(b->make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(namespace_of_this_thread(), of_a);
  const std::weak_ptr<const NetworkNamespace> left = a;
  a.reset();
  stay.end();
  EXPECT_EQ(namespace_of_this_thread(), own);
  EXPECT_TRUE(left.expired());
  stay.end();
  EXPECT_EQ(namespace_of_this_thread(), own);
}

TEST_F(NetworkNamespaceTest, AThreadReturnsHoweverItWasInside) {
  make("a");
  make("b");
  const auto a = open_named("a");
  const auto b = open_named("b");
  const std::string own = namespace_of_this_thread();
  const Fd socket(a->make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  EXPECT_EQ(netns_cookie(socket.get()), a->identity().cookie);
  EXPECT_EQ(namespace_of_this_thread(), own);
  EXPECT_EQ(a->make_socket(AF_INET, 99, 0), -EINVAL);
  EXPECT_EQ(namespace_of_this_thread(), own);
  try {
    const auto inside = a->enter();
    EXPECT_NE(namespace_of_this_thread(), own);
    throw std::runtime_error("in the middle");
  } catch (const std::runtime_error&) {
    EXPECT_EQ(namespace_of_this_thread(), own);
  }
  {
    const auto in_a = a->enter();
    const std::string of_a = namespace_of_this_thread();
    {
      const auto in_b = b->enter();
      EXPECT_NE(namespace_of_this_thread(), of_a);
    }
    EXPECT_EQ(namespace_of_this_thread(), of_a);
    const Fd another(b->make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(netns_cookie(another.get()), b->identity().cookie);
    EXPECT_EQ(namespace_of_this_thread(), of_a);
  }
  EXPECT_EQ(namespace_of_this_thread(), own);
}

// Tests put the whole node into a namespace: its threads return there, and it is "the node's own".
TEST_F(NetworkNamespaceTest, TheNodesOwnIsTheThreads) {
  make("node");
  make("guest");
  const auto node = open_named("node");
  std::thread([&] {
    ASSERT_EQ(::setns(node->fd(), CLONE_NEWNET), 0);
    const std::string own = namespace_of_this_thread();
    expect_invalid("/run/netns/node", "is the node's own");
    const auto guest = open_named("guest");
    EXPECT_EQ(namespace_of_this_thread(), own);
    const Fd socket(guest->make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
    EXPECT_EQ(namespace_of_this_thread(), own);
  }).join();
}

TEST_F(NetworkNamespaceTest, ManyThreadsMakeSocketsInManyNamespaces) {
  constexpr std::size_t kNamespaces = 4;
  std::vector<std::string> names;
  for (std::size_t i = 0; i < kNamespaces; ++i) make(names.emplace_back("guest" + std::to_string(i)));
  const std::string own = namespace_of_this_thread();
  const std::size_t descriptors = open_descriptors();
  std::atomic<int> wrong{0};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < 8; ++t) {
    threads.emplace_back([&, t] {
      for (std::size_t i = 0; i < 200; ++i) {
        const auto network = open_named(names[(t + i) % kNamespaces]);  // others open and drop it meanwhile
        const Fd socket(network->make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
        if (!socket || netns_cookie(socket.get()) != network->identity().cookie) ++wrong;
        if (namespace_of_this_thread() != own) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(open_descriptors(), descriptors);
}

// The process must not go on in a guest's network.
TEST_F(NetworkNamespaceTest, AThreadThatCannotReturnEndsTheProcess) {
  make("guest");
  const auto guest = open_named("guest");
  EXPECT_DEATH(
      {
        const auto inside = guest->enter();
        test::drop_capabilities({CAP_SYS_ADMIN});
      },
      "cannot leave a guest's network namespace");
}

// --- The end of a namespace.

TEST_F(NetworkNamespaceTest, IsGoneOnceItIsDeletedAndTheLastReferenceIsDropped) {
  make("witness");
  const auto witness = open_named("witness");
  // A link to each namespace: it ends with the namespace that has its peer.
  for (const std::string name : {"guest", "unused"}) {
    make(name);
    ip({"-n", "witness", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name});
  }
  const auto exists = [&](const char* name) {
    const auto inside = witness->enter();
    return ::if_nametoindex(name) != 0;
  };
  const auto wait_until_gone = [&](const char* name) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (exists(name) && std::chrono::steady_clock::now() < deadline) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    EXPECT_FALSE(exists(name)) << name;
  };
  const std::size_t descriptors = open_descriptors();
  auto guest = open_named("guest");
  auto same = open_named("guest");
  { const Fd socket(guest->make_socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)); }
  remove("guest");
  same.reset();
  remove("unused");
  wait_until_gone("unused");
  EXPECT_TRUE(exists("guest")) << "while it is referred to";
  guest.reset();
  EXPECT_EQ(open_descriptors(), descriptors);
  wait_until_gone("guest");
  expect_invalid("/run/netns/guest", "There is no");
}

}  // namespace
}  // namespace portway
