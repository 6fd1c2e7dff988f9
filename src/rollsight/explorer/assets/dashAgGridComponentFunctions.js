// Cells of tables that are more than text.
var dagcomponentfuncs = (window.dashAgGridComponentFunctions = window.dashAgGridComponentFunctions || {});
// A link to the row's page, followed without loading the app again.
dagcomponentfuncs.runLink = function (props) {
  return React.createElement(
    "a",
    {
      href: props.data && props.data.href,
      className: "rs-link",
      onClick: function (event) {
        if (event.ctrlKey || event.metaKey || event.shiftKey) return;
        event.preventDefault();
        window.dash_clientside.rollsight.go(props.data.href);
      },
    },
    props.value
  );
};
