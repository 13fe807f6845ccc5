#include "tests/support/network.h"

#include <fcntl.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include <chrono>
#include <exception>
#include <fstream>
#include <sstream>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "tests/support/process.h"

namespace portway::test {
namespace {

/// Runs `function` on a thread of its own and passes its exception on.
void run_on_thread(const std::function<void()>& function) {
  std::exception_ptr failure;
  std::thread([&] {
    try {
      function();
    } catch (...) {
      failure = std::current_exception();
    }
  }).join();
  if (failure) std::rethrow_exception(failure);
}

void check(bool succeeded, const char* what) {
  if (!succeeded) throw std::system_error(errno, std::generic_category(), what);
}

}  // namespace

NetworkNamespace::NetworkNamespace() {
  run_on_thread([this] {
    check(unshare(CLONE_NEWNET) == 0, "unshare(CLONE_NEWNET)");
    fd_.reset(open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC));
    check(static_cast<bool>(fd_), "/proc/thread-self/ns/net");
  });
  ip("link set lo up");
  set("net/ipv4/tcp_congestion_control", "reno");
}

void NetworkNamespace::run(const std::function<void()>& function) const {
  run_on_thread([&] {
    check(setns(fd(), CLONE_NEWNET) == 0, "setns");
    function();
  });
}

void NetworkNamespace::ip(std::string_view arguments) const {
  std::vector<std::string> command{"ip"};
  std::istringstream words{std::string(arguments)};
  for (std::string word; words >> word;) command.push_back(word);
  run_command(this, std::move(command));
}

void NetworkNamespace::ip_batch(const std::string& lines) const {
  const Fd file(memfd_create("ip-batch", 0));
  check(static_cast<bool>(file), "memfd_create");
  check(write(file.get(), lines.data(), lines.size()) == static_cast<ssize_t>(lines.size()), "write");
  ip("-batch /proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(file.get()));
}

void NetworkNamespace::set(const std::string& name, const std::string& value) const {
  run([&] {
    std::ofstream file("/proc/sys/" + name);
    if (!(file << value << std::flush)) throw std::runtime_error("cannot set " + name + " to " + value);
  });
}

void NetworkNamespace::skip_address_detection() const {
  for (const char* of : {"all", "default"}) set(std::string("net/ipv6/conf/") + of + "/accept_dad", "0");
}

std::string NetworkNamespace::path() const {
  return "/proc/" + std::to_string(getpid()) + "/fd/" + std::to_string(fd());
}

void NetworkNamespace::mount_at(const std::string& file) const {
  std::ofstream(file).close();
  check(mount(path().c_str(), file.c_str(), nullptr, MS_BIND, nullptr) == 0, "mount");
}

std::string NetworkNamespace::nft_ruleset() const {
  return run_command(this, {"nft", "list", "ruleset"});
}

void connect(const VethEnd& a, const VethEnd& b) {
  a.network.ip("link add " + a.name + " type veth peer name " + b.name + " netns " + b.network.path());
  for (const VethEnd& end : {a, b}) {
    end.network.ip("address add " + end.address + " dev " + end.name);
    end.network.ip("link set " + end.name + " up");
  }
}

std::string run_command(const NetworkNamespace* network, std::vector<std::string> command) {
  std::string words;
  for (const std::string& word : command) words += word + " ";
  Process process({.command = std::move(command), .network = network});
  const auto exit_code = process.wait(std::chrono::seconds(30));
  if (exit_code != 0) throw std::runtime_error(words + "failed: " + process.output());
  return process.output();
}

}  // namespace portway::test
