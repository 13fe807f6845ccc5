#include "tests/support/http_client.h"

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/json/parse.hpp>
#include <cctype>
#include <stdexcept>

#include "tests/support/tcp_client.h"

namespace portway::test {

boost::json::value HttpResponse::json() const {
  return boost::json::parse(body);
}

HttpResponse http_request(const NetworkNamespace& network, const std::string& address, std::uint16_t port,
                          const HttpRequest& request) {
  TcpClient connection(network, address, port);
  if (connection.connect_error() != 0) {
    throw std::system_error(connection.connect_error(), std::generic_category(), "connect to the API");
  }
  std::string text =
      request.method + " " + request.target + " HTTP/1.1\r\nHost: portway\r\nConnection: close\r\n";
  if (!request.key.empty()) text += "Authorization: Bearer " + request.key + "\r\n";
  if (!request.body.empty()) {
    text +=
        "Content-Type: application/json\r\nContent-Length: " + std::to_string(request.body.size()) + "\r\n";
  }
  connection.send(text + "\r\n" + request.body);
  const Received received = connection.receive_to_end();

  namespace http = boost::beast::http;
  http::response_parser<http::string_body> parser;
  parser.eager(true);
  parser.body_limit(boost::none);
  if (request.method == "HEAD") parser.skip(true);
  boost::system::error_code error;
  parser.put(boost::asio::buffer(received.bytes), error);
  if (!error) parser.put_eof(error);
  if (error)
    throw std::runtime_error("the API's answer is no HTTP: " + error.message() + ": " + received.bytes);

  HttpResponse response{
      .status = static_cast<int>(parser.get().result_int()), .headers = {}, .body = parser.get().body()};
  for (const auto& field : parser.get()) {
    std::string name(field.name_string());
    for (char& letter : name) letter = static_cast<char>(std::tolower(static_cast<unsigned char>(letter)));
    response.headers[name] = std::string(field.value());
  }
  return response;
}

}  // namespace portway::test
