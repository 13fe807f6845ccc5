// Tables of connections that have closed.
import {bytes, seconds} from "./words.js";

export const closeKey = (one) => [one.time, one.worker, one.connection, one.client, one.duration_s].join();

/// The columns of closed connections.
export const closeColumns = () => [
  {paint: ({time}) => new Date(time).toLocaleTimeString()}, {paint: ({duration_s}) => seconds(duration_s)}, {paint: ({client}) => client},
  {name: "instance", paint: ({instance}) => instance}, {paint: ({side}) => side},
  {paint: ({how}) => [how.replaceAll("_", " "), how === "fin" ? "" : "bad"]},
  {paint: ({sent_bytes}) => bytes(sent_bytes)}, {paint: ({received_bytes}) => bytes(received_bytes)},
];
