#include "client/apply.h"

#include <fmt/format.h>

#include <array>
#include <boost/json.hpp>
#include <cerrno>
#include <fstream>
#include <iostream>
#include <ostream>
#include <string>
#include <system_error>

#include "client/output.h"
#include "client/request.h"

namespace portway {
namespace {

namespace json = boost::json;

constexpr std::size_t kFileMax = std::size_t{16} << 20;
constexpr std::array<std::string_view, 4> kOutcomes = {"created", "updated", "unchanged", "removed"};

Failure bad_file(const std::string& file, const std::string& what) {
  return {Exit::kUsage, fmt::format("{}: {}", file, what),
          R"(The file is {"instances": {"ID": {"port_forwards": [{"guest_port": 3000, "label": "web"}]}}}.)"};
}

Outcome<std::string> read_all(const std::string& file) {
  std::ifstream opened;
  if (file != "-") {
    opened.open(file, std::ios::binary);
    if (!opened) return bad_file(file, std::system_category().message(errno));
  }
  std::istream& in = file == "-" ? std::cin : opened;
  std::string text(kFileMax + 1, '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (in.bad()) return bad_file(file, "it cannot be read");
  text.resize(static_cast<std::size_t>(in.gcount()));
  if (text.size() > kFileMax) return bad_file(file, "it has more than 16 MiB");
  return text;
}

/// The member "instances" of the file, each entry of which is an object with "port_forwards" alone.
Outcome<json::object> read_instances(const std::string& file) {
  const auto text = read_all(file);
  if (!text) return text.error();
  boost::system::error_code error;
  json::value document = json::parse(*text, error);
  if (error) return bad_file(file, "it is not JSON: " + error.message());
  const json::object* root = document.if_object();
  const json::value* found = root == nullptr ? nullptr : root->if_contains("instances");
  if (found == nullptr || !found->is_object() || root->size() != 1) {
    return bad_file(file, "it must be an object with the member instances alone, which is an object");
  }
  for (const auto& [id, wanted] : found->get_object()) {
    const json::object* of_instance = wanted.if_object();
    const json::value* forwards =
        of_instance == nullptr ? nullptr : of_instance->if_contains("port_forwards");
    if (forwards == nullptr || !forwards->is_array() || of_instance->size() != 1) {
      return bad_file(file,
                      fmt::format("instance {} must have the member port_forwards alone, which is a list",
                                  std::string_view(id)));
    }
  }
  return found->get_object();
}

std::size_t count_of(const json::object& answer, std::string_view list) {
  const json::value* found = answer.if_contains(list);
  return found != nullptr && found->is_array() ? found->get_array().size() : 0;
}

/// "vm-1: 2 created, 0 updated, 1 unchanged, 0 removed"
std::string summary_of(std::string_view id, const json::object& answer) {
  std::string line(id);
  for (std::size_t i = 0; i < kOutcomes.size(); ++i) {
    std::size_t count = count_of(answer, kOutcomes[i]);
    if (i == 0) count += count_of(answer, "to_create");
    line += fmt::format("{} {} {}", i == 0 ? ":" : ",", count, kOutcomes[i]);
  }
  return line;
}

}  // namespace

Outcome<void> run_apply(const Invocation& invocation, Console& console) {
  const auto instances = read_instances(invocation.arguments.text("--file"));
  if (!instances) return instances.error();
  const auto client = make_client(invocation, console);
  if (!client) return client.error();
  const bool dry_run = invocation.arguments.given("--dry-run");
  json::object done;
  std::size_t failed = 0;
  Exit exit = Exit::kRefused;
  for (const auto& [id, wanted] : *instances) {
    HttpRequest request{
        .method = "PUT",
        .target = "/instances/" + percent_encoded(id) + "/port-forwards" + (dry_run ? "?dry_run=true" : ""),
        .body = json::serialize(wanted)};
    const auto answer = ask(*client, request);
    if (!answer) {
      ++failed;
      exit = answer.error().exit;
      console.err << fmt::format("portway: {}: {}\n", std::string_view(id), in_one_line(answer.error()));
      if (exit == Exit::kUnreachable) break;
      continue;
    }
    if (!invocation.wants_data()) console.out << summary_of(id, *answer) << "\n";
    done[id] = *answer;
  }
  if (invocation.wants_data()) console.out << as_data(invocation.format(), json::object{{"instances", done}});
  if (failed == 0) return {};
  return Failure{exit,
                 fmt::format("{} of {} instances are as the file says.", done.size(), instances->size()),
                 "Mend what is said above, and apply the file again."};
}

}  // namespace portway
