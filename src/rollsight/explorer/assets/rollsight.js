// Keeps the address bar equal to what is chosen on the page, and moves by key.
window.dash_clientside = window.dash_clientside || {};
(function () {
  let keys = {};
  const go = (href) => {
    window.history.pushState({}, "", href);
    window.dispatchEvent(new CustomEvent("_dashprivate_pushstate"));
    window.dispatchEvent(new PopStateEvent("popstate"));
    window.scrollTo(0, 0);
  };
  Object.assign((window.dash_clientside.rollsight = window.dash_clientside.rollsight || {}), {
    keepAddress: function (query) {
      if (!query || query.path !== window.location.pathname) return window.dash_clientside.no_update;
      const given = Object.entries(query.chosen).filter(([, value]) => value !== null && value !== "");
      const search = given.length ? "?" + new URLSearchParams(given).toString() : "";
      if (window.location.search !== search) {
        window.history.replaceState(window.history.state, "", window.location.pathname + search);
      }
      return window.dash_clientside.no_update;
    },
    keepKeys: function (given) {
      keys = given || {};
      return window.dash_clientside.no_update;
    },
    chooseTarget: function (target) {
      const chosen = new URLSearchParams(window.location.search);
      if (!target || chosen.get("target") === target) return window.dash_clientside.no_update;
      chosen.set("target", target);
      go(window.location.pathname + "?" + chosen);
      return window.dash_clientside.no_update;
    },
    chooseRuns: function (selected, by, token, drawn) {
      const names = ((selected && selected.ids) || selected || []).map((row) => row.name || row);
      const same = (a, b) => [...a].sort().join() === [...b].sort().join();
      if (by === drawn.by && token === drawn.token && same(names, drawn.names)) return window.dash_clientside.no_update;
      return { names: names, by: by, token: token };
    },
    go: function (href) {
      if (href) go(href);
      return window.dash_clientside.no_update;
    },
  });
  document.addEventListener("keydown", function (event) {
    const typing = /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName) || event.target.isContentEditable;
    if (event.ctrlKey || event.metaKey || event.altKey || typing) return;
    const cell = event.key === "Enter" && event.target.closest && event.target.closest(".ag-cell");
    if (cell) {
      // The row's link may stand among the columns that do not scroll.
      const row = cell.closest(".ag-row").getAttribute("row-index");
      const link = cell.querySelector("a[href]") || cell.closest(".ag-root").querySelector(`.ag-row[row-index="${row}"] a[href]`);
      if (link && event.target === cell) link.click();
      return;
    }
    if (event.target.closest && event.target.closest(".ag-root, [role=slider], [role=tablist], [role=radiogroup]")) return;
    const wanted = { ArrowLeft: "previous", k: "previous", ArrowRight: "next", j: "next", ArrowUp: "up", u: "up" }[event.key];
    if (wanted && keys[wanted]) {
      event.preventDefault();
      go(keys[wanted]);
    } else if (event.key === "/") {
      const search = document.querySelector("[data-search] input, input[data-search]");
      if (search) {
        event.preventDefault();
        search.focus();
      }
    }
  });
})();
