// The question before something ends.
import {Forgotten} from "./api.js";
import {setHidden, write} from "./table.js";

/// Does what the button says, once at a time, however often it is clicked. What goes wrong is written to `problem`.
export async function busy(button, problem, act) {
  if (button.ariaDisabled === "true") return;
  button.ariaDisabled = "true"; // a button that is disabled would lose the focus
  write(problem, "");
  try {
    await act();
  } catch (error) {
    if (error instanceof Forgotten) return;
    // Who has closed the dialog meanwhile is told all the same.
    write(problem.closest("dialog").open ? problem : document.getElementById("status"), error.message);
  }
  button.ariaDisabled = "false";
}

export class Confirm {
  constructor(main) {
    for (const name of ["title", "text", "choice", "connections", "problem", "go"]) this[name] = main.querySelector(`#confirm-${name}`);
    this.dialog = main.querySelector("#confirm");
    main.querySelector("#confirm-cancel").addEventListener("click", () => this.dialog.close());
    main.querySelector("#confirm-form").addEventListener("submit", (event) => {
      event.preventDefault();
      busy(this.go, this.problem, async () => {
        const {act} = this;
        await act(this.connections.value);
        if (this.act === act) this.dialog.close(); // not what has been asked since
      });
    });
  }

  /// `act` is called with what is to become of established connections, if `choice` says that this can be chosen.
  ask({title, text, verb, choice = false, act}) {
    this.act = act;
    write(this.title, title);
    write(this.text, text);
    write(this.go, verb);
    write(this.problem, "");
    this.connections.value = "keep";
    setHidden(this.choice, !choice);
    this.dialog.showModal();
  }
}
