#include "client/node_facts.h"

#include <net/if.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

#include <algorithm>
#include <charconv>
#include <fstream>
#include <limits>
#include <sstream>

#include "base/fd.h"

namespace portway {
namespace {

constexpr std::string_view kDaemon = "portwayd";

bool is_number(const std::string& text) {
  return !text.empty() && text.find_first_not_of("0123456789") == std::string::npos;
}

std::optional<std::string> read_file(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::ostringstream text;
  if (!file.is_open() || !(text << file.rdbuf())) return std::nullopt;
  std::string out = std::move(text).str();
  while (out.ends_with('\n')) out.pop_back();
  return out;
}

/// The text after "KEY" up to the end of the line, in /proc/PID/status and /proc/PID/limits.
std::string value_after(const std::string& text, const std::string& key) {
  std::size_t found = text.starts_with(key) ? 0 : text.find("\n" + key);
  if (found == std::string::npos) return {};
  found += key.size() + (found == 0 ? 0 : 1);
  return text.substr(found, text.find('\n', found) - found);
}

/// nullopt for "unlimited" and the like.
template <class Number>
std::optional<Number> parse(const std::string& word, int base = 10) {
  Number number = 0;
  const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), number, base);
  return error == std::errc() ? std::optional(number) : std::nullopt;
}

std::vector<pid_t> daemons(const std::filesystem::path& proc) {
  std::vector<pid_t> found;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(proc, error), end; !error && entry != end;
       entry.increment(error)) {
    const std::string name = entry->path().filename();
    if (is_number(name) && read_file(entry->path() / "comm") == kDaemon) {
      found.push_back(parse<pid_t>(name).value_or(0));
    }
  }
  std::ranges::sort(found);
  return found;
}

bool read_status(const std::filesystem::path& process, Subject& subject) {
  const std::string status = read_file(process / "status").value_or("");
  if (status.empty()) return false;
  std::string word;
  std::istringstream(value_after(status, "Uid:")) >> word >> word;  // real, effective
  subject.uid = parse<uid_t>(word).value_or(0);
  std::istringstream(value_after(status, "Gid:")) >> word >> word;
  std::istringstream gids(word + " " + value_after(status, "Groups:"));
  while (gids >> word) subject.groups.push_back(parse<gid_t>(word).value_or(0));
  std::istringstream(value_after(status, "CapEff:")) >> word;
  subject.capabilities = parse<std::uint64_t>(word, 16).value_or(0);
  return true;
}

void read_limits(const std::filesystem::path& process, Subject& subject) {
  std::istringstream limits(value_after(read_file(process / "limits").value_or(""), "Max open files"));
  std::string soft;
  std::string hard;
  limits >> soft >> hard;
  // The daemon has already raised its soft limit; for this process, the hard limit shows what a daemon could
  // get.
  subject.descriptors_max = parse<std::uint64_t>(subject.is_daemon() ? soft : hard)
                                .value_or(std::numeric_limits<std::uint64_t>::max());
}

/// False if the process does not exist.
bool read_process(const std::filesystem::path& process, Subject& subject) {
  if (!read_status(process, subject)) return false;
  read_limits(process, subject);
  return true;
}

}  // namespace

std::optional<std::string> NodeFacts::text(const std::string& path) const {
  return read_file(root / path);
}

std::optional<std::int64_t> NodeFacts::number(const std::string& path) const {
  const auto content = text(path);
  return content ? parse<std::int64_t>(*content) : std::nullopt;
}

std::optional<std::int64_t> NodeFacts::sysctl(std::string name) const {
  std::ranges::replace(name, '.', '/');
  return number("proc/sys/" + name);
}

LinkState link_state(const std::string& device) {
  const Fd socket(::socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  ifreq request{};
  device.copy(request.ifr_name, sizeof request.ifr_name - 1);
  if (::ioctl(socket.get(), SIOCGIFFLAGS, &request) != 0) return LinkState::kMissing;
  return (request.ifr_flags & IFF_RUNNING) != 0 ? LinkState::kCarrier : LinkState::kNoCarrier;
}

std::vector<Subject> find_subjects(const std::filesystem::path& root) {
  const std::filesystem::path proc = root / "proc";
  std::vector<Subject> subjects;
  for (const pid_t pid : daemons(proc)) {
    Subject subject;
    subject.pid = pid;
    // A process without a status has ended in the meantime.
    if (read_process(proc / std::to_string(pid), subject)) subjects.push_back(std::move(subject));
  }
  if (subjects.empty()) (void)read_process(proc / "self", subjects.emplace_back());
  return subjects;
}

}  // namespace portway
